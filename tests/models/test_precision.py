"""Precisions, layouts and compilation of networks; precision and batch of the VAE."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_data import manifest, pickle_paths, ref, tensor

from erk.generation.options import identity_of
from erk.io import pickles
from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.models.edm import EDMPrecond, VPPrecond
from erk.models.edm2 import Precond
from erk.models.encoders import VAEEncoder
from erk.models.model import PRECISIONS, load_model
from erk.runtime.memory import without_weights
from erk.runtime.precision import ALL, RELEASED, tf32_only

ROOT = Path(__file__).parents[2]
NETS = ["edm2_cond", "edm2_uncond", "edm2_auto", "edm2_pixel"]
WITHIN = {"fp32": 0, "tf32": 0, "fp16": 5e-3, "bf16": 4e-2}  # of D's largest value


def golden_network(name):
    record = pickles.load(pickle_paths(name)[0])["ema"]
    with without_weights():
        network = Precond(**record.init_kwargs)
    network.load_state_dict(dict(record.tensors()), assign=True)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", WITHIN)
def test_every_precision_stays_near_the_originals(name, precision):
    network, data = golden_network(name), ref(name)
    network.compute_dtype = PRECISIONS[precision]
    network.fold()
    labels = tensor(data["D_labels"]) if "D_labels" in data else None
    out, expected = network(tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"]), labels), None
    expected = tensor(data["D_vec_out"])
    atol = manifest()["nets"][name]["D"]["atol"] + WITHIN[precision] * expected.abs().max()
    assert out.dtype == torch.float32 and out.is_contiguous()
    assert (out - expected).abs().max() <= atol


def random_edm(kind, **more):
    torch.manual_seed(0)
    common = {"img_resolution": 16, "img_channels": 3, "model_channels": 32, "num_blocks": 1}
    return kind(**common, attn_resolutions=[8], channel_mult=[1, 2], **more).requires_grad_(False)


@pytest.mark.parametrize(
    "network",
    [
        random_edm(EDMPrecond, model_type="DhariwalUNet", label_dim=10),
        random_edm(VPPrecond, model_type="SongUNet", encoder_type="residual",
                   embedding_type="fourier", resample_filter=[1, 3, 3, 1]),
    ],
    ids=["adm", "ncsnpp"],
)  # fmt: skip
def test_folding_an_edm_network_changes_rounding_only(network):
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor(0.7)
    plain = network(x, sigma)
    network.fold()
    assert torch.allclose(network(x, sigma), plain, atol=2e-6)
    network.compute_dtype = torch.bfloat16
    network.fold()
    assert (network(x, sigma) - plain).abs().max() < 0.1
    assert {p.dtype for n, p in network.named_parameters() if "conv" in n} == {torch.bfloat16}


DIGEST = """
import hashlib, torch
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.models.model import load_model
from erk.method.settings import Settings
torch.set_num_threads(1)
for precision in ("fp32", "fp16", "bf16"):
    model = load_model("digits", precision=precision)
    job = Job(model, Settings(steps=4, w_stiff=0.5), seeds=range(6), batch=4)
    images = torch.cat([batch.wait() for batch in generate(job)])
    print(precision, hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""


def test_every_precision_gives_the_same_bytes_in_every_process():
    report = [
        subprocess.run([sys.executable, "-c", DIGEST], cwd=ROOT, capture_output=True, text=True,
                       check=True).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert report[0] == report[1] and len(set(report[0])) == 6  # three precisions that differ


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def decoded(folder, dtype=torch.float32, batch=8):
    encoder = VAEEncoder(str(folder), batch_size=batch, offline=True)
    encoder.dtype = dtype
    return encoder.decode(torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_the_vae_takes_a_precision_and_a_batch(vae_folder):
    exact = decoded(vae_folder).int()
    for other in (decoded(vae_folder, batch=1), decoded(vae_folder, torch.bfloat16)):
        assert other.shape == exact.shape == (3, 3, 16, 16) and other.dtype == torch.uint8
    assert (decoded(vae_folder, batch=1).int() - exact).abs().max() <= 1
    reduced = (decoded(vae_folder, torch.bfloat16).int() - exact).abs()
    assert 0 < reduced.max() <= 16


def test_on_a_cpu_the_vae_has_channels_last_where_it_is_not_exact(vae_folder):
    """float32 keeps the layout as loaded: the other one rounds to 5e-6 where it rounds to 1e-6."""
    for dtype, layout in ((torch.float32, False), (torch.float16, True), (torch.bfloat16, True)):
        encoder = VAEEncoder(str(vae_folder), offline=True)
        encoder.dtype = dtype
        encoder.decode(torch.zeros(1, 4, 8, 8))
        weight = encoder.vae.layers.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == layout
        assert weight.is_contiguous() != layout


class SpyVAE:
    """A decoder that rounds differently for every number of latents, and keeps the switches."""

    def __init__(self):
        self.tf32 = []

    def to(self, device):
        return self

    def __call__(self, x):
        self.tf32.append(is_tf32())
        return (x[:, :3] + len(x)) / 20


def is_tf32():
    """What may use TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        result = [target.fp32_precision == "tf32" for target in (matmul, cudnn.conv)]
    else:
        result = [target.allow_tf32 for target in (matmul, cudnn)]
    return {name for name, is_on in zip(ALL, result, strict=True) if is_on}


@pytest.mark.parametrize("of_network", [(), RELEASED, ALL])
@pytest.mark.parametrize("of_vae", [(), RELEASED, ALL])
def test_tf32_of_the_vae_is_its_own(of_vae, of_network):
    encoder = VAEEncoder()
    encoder.vae, encoder.tf32 = SpyVAE(), of_vae
    with tf32_only(of_network):
        encoder.decode(torch.zeros(2, 4, 2, 2))
        assert is_tf32() == set(of_network)
    assert encoder.vae.tf32 == [set(of_vae)]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6])
def test_an_image_does_not_depend_on_its_place_in_the_vaes_batches(batch):
    encoder = VAEEncoder(batch_size=batch)
    encoder.vae = SpyVAE()
    pixels = encoder.decode(torch.zeros(5, 4, 2, 2))
    assert len(pixels) == 5 and (pixels == pixels[0]).all()


def test_load_model_hands_both_to_the_vae():
    cond = str(pickle_paths("edm2_cond")[0])
    released, other = load_model(cond), load_model(cond, vae_precision="bf16", vae_batch=3)
    assert (released.encoder.dtype, released.encoder.batch_size) == (torch.float32, 8)
    assert (other.encoder.dtype, other.encoder.batch_size) == (torch.bfloat16, 3)
    assert released.encoder.tf32 == RELEASED and not other.encoder.tf32
    assert load_model(cond, vae_precision="tf32").encoder.tf32 == ALL
    assert load_model(cond, precision="tf32").encoder.tf32 == RELEASED
    assert not load_model(cond, vae_precision="fp32").encoder.tf32
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        load_model(cond, vae_precision="half")


OPTIONS = {"precision": "bf16", "vae_precision": "auto", "noise": "cpu",
           "labels": "random", "class_idx": None, "vae": None, "kind": "png", "subdirs": False,
           "vae_batch": None}  # fmt: skip


def test_a_vae_in_a_folder_is_identified_by_its_files(tmp_path):
    """Other weights under the same path are another run."""

    def identified(vae):
        options = OPTIONS | {"vae": str(vae)}
        return identity_of(options, Settings(), ("net", None), "random", torch.device("cpu"))["vae"]

    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    names = []
    for content in (b"a", b"b", b"a"):
        weights.write_bytes(content)
        names.append(identified(tmp_path))
    assert names[0] == names[2] != names[1] and str(tmp_path) not in names[0]
    assert identified("stabilityai/sd-vae-ft-ema") == "stabilityai/sd-vae-ft-ema"


def test_runs_that_round_otherwise_are_other_runs():

    def report(device="cpu", compiled=False, **more):
        target, networks = torch.device(device), ("net", None)
        options = OPTIONS | more
        return identity_of(options, Settings(), networks, "random", target, compiled)["precision"]

    assert report() == report(vae_precision="fp32") == "bf16 on cpu"
    assert report("cuda") == "bf16 on cuda"
    assert report("cuda", vae_precision="fp32") == "bf16 on cuda, VAE in fp32"
    assert report(compiled=True, vae_precision="fp16") == "bf16 on cpu, compiled, VAE in fp16"
    assert report(vae_batch=3) == "bf16 on cpu, VAE batch 3"


@pytest.mark.gpu
def test_half_precision_runs_with_channels_last_on_cuda():
    network = golden_network("edm2_cond").cuda()
    network.fold()
    weights = [m.folded for m in network.modules() if getattr(m, "folded", None) is not None]
    convs = [w for w in weights if w.ndim == 4]
    assert convs and all(w.dtype == torch.float16 for w in convs)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convs)


@pytest.mark.gpu
def test_a_level_on_the_host_reaches_cuda_without_a_wait():
    model = load_model(str(pickle_paths("edm2_cond")[0]), "cuda")
    x = torch.randn(2, *model.sample_shape, device="cuda")
    labels = torch.eye(model.label_dim, device="cuda")[:2]
    model(x, torch.tensor(1.0), labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        settings = Settings(steps=4, w_stiff=1.0)
        list(loop(settings.drift(model, labels), x, settings.sigmas(), settings))
    finally:
        torch.cuda.set_sync_debug_mode("default")
