"""Everything that a GPU runs, on fake CUDA tensors: they have a device and a dtype, but no values.

PyTorch's fake tensors refuse what a GPU refuses: operands on two devices or of two dtypes. Reading
a value on the host raises (DataDependentOutputException), and so does the guard for a copy between
devices, so these tests find both without a GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erk.generation.sampling import _to_host
from erk.method.corrections import at_limit
from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS
from erk.models import adapters, encoders
from erk.models.edm import EDMPrecond
from erk.models.edm2 import Precond
from erk.models.encoders import DigitsEncoder, PixelEncoder, PixelUnshuffleEncoder, VAEEncoder
from erk.models.vae import Decoder
from metrics.extractors import dinov2, inception, vgg16
from metrics.extractors.resize import bicubic, bicubic_fixed_point, bicubic_pil, bilinear_tf1
from metrics.statistics import Moments

pytestmark = pytest.mark.skipif(
    not hasattr(torch._C, "_ensureCUDADeviceGuardSet"),
    reason="PyTorch 2.8 asks the driver even for fake tensors",
)
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.convolution,
            aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention,
            aten._scaled_dot_product_cudnn_attention)  # fmt: skip
UNET = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
SMALLEST = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
EDM = {"img_resolution": 16, "img_channels": 3, "label_dim": 10}


class FakeCuda(TorchFunctionMode):
    """Tensors on "cuda" are fake, tensors on the CPU are real."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_fake = kwargs.get("pin_memory") or any(map(_on_cuda, tree_leaves((args, kwargs))))
        with self.fake if is_fake else nullcontext():
            return func(*args, **kwargs)


def _on_cuda(x):
    return isinstance(x, FakeTensor) or (
        isinstance(x, str | torch.device) and str(x).startswith("cuda")
    )


class Guard(TorchDispatchMode):
    """Raise for products of two dtypes, which fake tensors accept; with `strict` for copies too."""

    def __init__(self, strict=True):
        super().__init__()
        self.strict = strict

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operands = [x for x in args if isinstance(x, torch.Tensor)]
        if func.overloadpacket in PRODUCTS and len({x.dtype for x in operands}) > 1:
            raise AssertionError(f"{func} has operands of {[x.dtype for x in operands]}")
        result = func(*args, **(kwargs or {}))
        if self.strict and func.overloadpacket in COPIES:
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor)]
            if len({x.device.type for x in tensors}) > 1:
                raise AssertionError(f"{func} copies between devices")
        return result


@pytest.fixture
def cuda():
    with FakeCuda(), torch.no_grad():
        yield


def empty(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def on_cuda(build):
    """Build a module without values and put fake CUDA tensors of its shapes and dtypes in it."""
    with torch.device("meta"):
        module = build().eval().requires_grad_(False)
    for part in module.modules():
        for tensors in (part._parameters, part._buffers, vars(part)):
            for name, x in tensors.items():
                if isinstance(x, torch.Tensor):
                    fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
                    is_parameter = isinstance(x, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(fake, False) if is_parameter else fake
    return module


def folded(network, dtype):
    """Prepare a network on its device for computations in that dtype."""
    network.compute_dtype = dtype
    network.fold()
    return network


def edm2_network(dtype=torch.float16, unet=UNET):
    """Fold on the GPU, where folding pads channels and lays out weights otherwise."""
    return folded(on_cuda(lambda: Precond(16, 3, 10, **unet)), dtype)


def edm_network(kind, dtype=torch.float16):
    """Fold without a device: fake parameters cannot be converted, and CUDA changes nothing."""
    return on_cuda(lambda: folded(EDMPrecond(model_type=kind, **EDM, **UNET), dtype))


def last_state(settings, network, guide=None):
    """Run the sampling loop, which must neither wait for the device nor copy from or to it."""
    noise, labels = empty(2, 3, 16, 16), empty(2, 10)
    drift = settings.drift(network, labels, guide)
    sigmas = settings.sigmas()
    with Guard():
        start = noise.to(settings.dtype) * sigmas[0]
        for x, step in loop(drift, start, sigmas, settings, torch.empty_like):
            at_limit(step, x)  # as `solve` does
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["EDM2", "DhariwalUNet", "SongUNet"])
def test_networks(cuda, kind, dtype):
    network = edm2_network(dtype) if kind == "EDM2" else edm_network(kind, dtype)
    with Guard():
        denoised = network(empty(2, 3, 16, 16), empty([]), empty(2, 10))
    assert (denoised.device.type, denoised.dtype) == ("cuda", torch.float32)
    if kind == "EDM2":  # the first and the last convolution, of 4 and 3 channels, are padded to 8
        channels = (4, 3) if dtype == torch.float32 else (8, 8)
        first, last = network.unet.enc["16x16_conv"].folded, network.unet.out_conv.folded
        assert (first.shape[1], len(last)) == channels and first.device.type == "cuda"


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("chosen", [{}, {"w_stiff": 1.0}, {"erk": "auto"}], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(cuda, solver, chosen, guided):
    guide = edm2_network(unet=SMALLEST) if guided else None
    settings = Settings(solver=solver, steps=4, guidance=2.0 if guided else 1.0, **chosen)
    x = last_state(settings, edm2_network(unet=SMALLEST), guide)
    assert x.device.type == "cuda" and x.dtype == torch.float32


@pytest.mark.parametrize(
    "chosen",
    [
        {"guidance_interval": (0.1, 10.0), "w_stiff": 1.0, "dtype": torch.float64},
        {"S_churn": 10.0, "dtype": torch.float64},
        {"S_churn": 10.0},
        {"pc_snr": 0.1},
        {"afs": True, "w_stiff": 1.0, "erk_scale": "alpha"},
        {"w_stiff": 1.0, "erk_proj": True},
        {"solver": "deis", "guidance_kind": "apg", "apg_threshold": 1.0, "apg_momentum": -0.5},
        {"guidance": 0.5, "guidance_kind": "cfg++", "w_stiff": 1.0},
        {"solver": "dpmpp", "solver_options": {"dynamic_thresholding": True}},
        {"solver": "dpm2", "solver_options": {"predict_x0": True}, "schedule": "polynomial",
         "denoise_to_zero": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings(cuda, chosen):
    settings = Settings(steps=4, **{"guidance": 2.0, **chosen})
    x = last_state(settings, edm2_network(unet=SMALLEST), edm2_network(unet=SMALLEST))
    assert x.dtype == chosen.get("dtype", torch.float32)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (PixelEncoder(), (3, 64, 64)),
        (DigitsEncoder(-0.39, 0.75), (1, 8, 8)),
        (PixelUnshuffleEncoder(0.13, 0.31), (4, 14, 14)),
    ],
)
def test_decoding(cuda, encoder, shape, monkeypatch):
    monkeypatch.setattr(encoders, "check_finite", lambda x, *_: x)  # it waits, once per batch
    with Guard():
        images = encoder.decode(empty(2, *shape))
    assert images.dtype == torch.uint8 and images.device.type == "cuda"


VAE = {"down_block_types": ["DownEncoderBlock2D"] * 2, "latent_channels": 4, "norm_num_groups": 8,
       "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 16]}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vae(cuda, dtype, monkeypatch):
    monkeypatch.setattr(encoders, "check_finite", lambda x, *_: x)
    encoder = VAEEncoder(batch_size=2)
    encoder.dtype = dtype
    vae = on_cuda(lambda: Decoder(AutoencoderKL(**VAE)).to(dtype))
    monkeypatch.setattr(encoder, "_load", lambda device: vae)
    with Guard(strict=False):  # scale and bias are uploaded, once per batch
        decoded = encoder.decode(empty(3, 4, 8, 8))
    assert decoded.dtype == torch.uint8 and decoded.device.type == "cuda"


def test_the_guard_catches_copies_and_reads(cuda):
    x = empty(2, 3)
    with Guard(), pytest.raises(AssertionError, match="copies between devices"):
        torch.tensor([1.0, 2.0]).to(x.device)
    with Guard(), pytest.raises(AssertionError, match="copies between devices"):
        x.cpu()
    with pytest.raises(DataDependentOutputException):
        bool((x > 0).any())
    with pytest.raises(DynamicOutputShapeException):  # the check for NaN
        PixelEncoder().decode(x.reshape(1, 2, 1, 3))
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(2, 3)
    with Guard(), pytest.raises(AssertionError, match="operands of"):
        x.half() @ empty(3, 2)


SMALL = "vit_small_patch14_dinov2"


@pytest.mark.parametrize("name", ["inception", "vgg16", "dinov2"])
def test_extractors(cuda, name):
    shapes = {"inception": inception.shapes, "vgg16": vgg16.shapes,
              "dinov2": lambda: dinov2.shapes(SMALL)}[name]()  # fmt: skip
    unfilled = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    prepare, network = vgg16.prepare, None
    if name == "inception":
        state = {key: empty(shape) for key, shape in shapes.items()}
        prepare, network = inception.prepare, inception.build(state, "cuda")
    elif name == "vgg16":
        network = on_cuda(lambda: vgg16.build(unfilled))
    else:
        network = on_cuda(lambda: dinov2.build(unfilled, SMALL))
    with Guard(strict=False):
        outputs = network(prepare(empty(2, 3, 64, 64, dtype=torch.uint8)))
    assert {x.device.type for x in tree_leaves(outputs)} == {"cuda"}


@pytest.mark.parametrize("adapt", [
    lambda model: adapters.from_epsilon(model, torch.linspace(0.999, 0.001, 50)),
    lambda model: adapters.from_v(model, torch.linspace(0.999, 0.001, 50)),
    adapters.from_flow,
    adapters.from_denoiser,
])  # fmt: skip
def test_adapters(cuda, adapt):
    network = adapt(lambda x, time, labels: x * time[:, None, None, None])
    assert last_state(Settings(steps=3), network).dtype == torch.float32


@pytest.mark.parametrize("resize", [bilinear_tf1, bicubic, bicubic_pil, bicubic_fixed_point])
def test_resizing(cuda, resize):
    images = resize(empty(2, 3, 64, 64, dtype=torch.uint8), 32)
    assert images.shape == (2, 3, 32, 32) and images.device.type == "cuda"


def test_statistics(cuda):
    """Moments are sums in float64 on the GPU."""
    x = empty(50, 8)
    moments = Moments(8)
    with pytest.raises(DataDependentOutputException):  # the check for NaN reads the features once
        moments.add(x)


def test_images_are_copied_into_pinned_memory(cuda, monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: type("E", (), {"record": events.append})())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    pixels, copied = _to_host(empty(2, 3, 64, 64, dtype=torch.uint8))
    assert pixels.device.type == "cpu" and copied is not None and len(events) == 1
