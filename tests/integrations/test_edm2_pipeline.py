"""EDM2 and EDM networks in diffusers: the same images as erk.sample's, and on disk and back."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import erk
from erk.integrations.diffusers import EDM2Network, EDM2Pipeline, ERKHeunScheduler
from erk.method.drift import NonFiniteError
from erk.models.checkpoint import read, write_safetensors
from erk.models.shapes import Part

ROOT = Path(__file__).parents[2]
NETS = ROOT / "tests/golden/nets"
CLASSES = [3, 1, 4]


@pytest.fixture(scope="module")
def digits():
    return erk.load_model("digits")


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count=3):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def noise_of(model, count=3):
    return erk.noise_and_labels(range(count), model)[0]


@pytest.mark.parametrize("weights", [{}, {"w_stiff": 0.5, "w_con": 0.3}], ids=str)
def test_the_images_are_those_of_erk(digits, weights):
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits", **weights))
    latent = pipe(CLASSES, 8, generator=generators(), output_type="latent").images
    wanted = erk.sample(digits, noise_of(digits), torch.tensor(CLASSES), steps=8, **weights)
    torch.testing.assert_close(latent, wanted, rtol=1e-5, atol=1e-5)
    again = pipe(CLASSES, 8, latents=noise_of(digits), output_type="latent").images
    assert torch.equal(again, latent)
    pixels = digits.decode(latent).numpy()
    sample_images = pipe(CLASSES, 8, generator=generators()).images
    assert all((np.asarray(a) == b[0]).all() for a, b in zip(sample_images, pixels, strict=True))
    arrays = pipe(CLASSES, 8, generator=generators(), output_type="np").images
    assert arrays.shape == (3, 8, 8, 1) and (arrays * 255 == pixels.transpose(0, 2, 3, 1)).all()
    (tensors,) = pipe(CLASSES, 8, generator=generators(), output_type="pt", return_dict=False)
    assert torch.equal(tensors, torch.from_numpy(pixels) / 255)


@pytest.mark.parametrize("preset", ["digits-autog", "digits-cfg"])
def test_a_preset_brings_its_guide(preset):
    result = erk.models.presets.find_preset(preset)
    main, guide = (erk.load_model(Path(file)) for file in (result.net, result.gnet))
    pipe = quiet(EDM2Pipeline.from_checkpoint(preset, w_stiff=0.5, w_con=0.3))
    written = pipe(CLASSES, 6, generator=generators(), output_type="latent").images
    how = dict(steps=6, w_stiff=0.5, w_con=0.3)
    wanted = erk.sample(
        main, noise_of(main), torch.tensor(CLASSES), guide_model=guide, guidance=result.guidance,
        **how,
    )  # fmt: skip
    torch.testing.assert_close(written, wanted, rtol=1e-5, atol=1e-5)
    plain = pipe(CLASSES, 6, 1.0, generators(), output_type="latent").images
    alone = erk.sample(main, noise_of(main), torch.tensor(CLASSES), **how)
    torch.testing.assert_close(plain, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["edm_adm", "iddpm_adm", "edm2_uncond"])
def test_released_pickles(name):
    """Small networks of the released classes; iDDPM's rounds noise levels to its own."""
    path = NETS / f"{name}.pkl"
    pipe, model = quiet(EDM2Pipeline.from_checkpoint(path)), erk.load_model(path)
    labels = None if model.label_dim == 0 else torch.tensor([1, 0])
    written = pipe(labels, 5, generator=generators(2), batch_size=2, output_type="latent").images
    wanted = erk.sample(model, noise_of(model, 2), labels, steps=5)
    torch.testing.assert_close(written, wanted, rtol=1e-4, atol=1e-4)
    assert "NVIDIA" in pipe.network.config.licence


@pytest.mark.parametrize("preset", ["digits", "digits-autog"])
def test_on_disk_and_back(preset, tmp_path):
    pipe = quiet(EDM2Pipeline.from_checkpoint(preset, w_stiff=0.5, w_con=0.3))
    pipe.save_pretrained(tmp_path)
    again = quiet(EDM2Pipeline.from_pretrained(tmp_path))
    assert type(again.network) is EDM2Network and type(again.scheduler) is ERKHeunScheduler
    assert again.scheduler.config.w_stiff == 0.5
    assert again.config.guidance_scale == pipe.config.guidance_scale
    types = [{name: p.dtype for name, p in one.network.named_parameters()} for one in (pipe, again)]
    assert types[0] == types[1] and torch.float16 in types[0].values()
    written = [
        one(CLASSES, 6, generator=generators(), output_type="latent").images
        for one in (pipe, again)
    ]
    assert torch.equal(*written)


def test_the_network_is_a_denoiser_and_survives_to(digits):
    network = EDM2Network.from_checkpoint("digits")
    x, labels = noise_of(digits), torch.tensor(CLASSES)
    wanted = digits(x, 0.5, labels)
    assert torch.equal(network(x, torch.tensor(0.5), labels), wanted)
    folded = network.network.unet.out_conv.folded
    network.to("cpu")
    assert torch.equal(network(x, torch.tensor(0.5), labels), wanted)
    assert network.network.unet.out_conv.folded is not folded


def test_another_scheduler_with_sample_prediction(digits):
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    pipe.scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    written = pipe(CLASSES, 8, generator=generators(), output_type="latent").images
    wanted = erk.sample(
        digits, noise_of(digits), torch.tensor(CLASSES), steps=8, solver="euler", schedule="edm"
    )  # fmt: skip
    torch.testing.assert_close(written, wanted, rtol=1e-5, atol=1e-5)


def test_one_class_and_none(digits):
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    one = pipe(7, 4, generator=torch.Generator().manual_seed(0), output_type="latent").images
    listed = pipe([7], 4, generator=generators(1), output_type="latent").images
    assert torch.equal(one, listed)
    free = pipe(None, 4, latents=noise_of(digits), batch_size=3, output_type="latent").images
    torch.testing.assert_close(free, erk.sample(digits, noise_of(digits), steps=4))


def test_mistakes_have_one_sentence():
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    for message, how in {
        "needs a guide: load the pipeline": {"guidance_scale": 2.0},
        "output_type must be pil or np or pt or latent": {"output_type": "jpg"},
        "are 0 to 9": {"class_labels": [10]},
        "needs at least 2 steps": {"num_inference_steps": 1},
    }.items():
        with pytest.raises(ValueError, match=message):
            pipe(**how)
    for scheduler in (
        diffusers.HeunDiscreteScheduler(prediction_type="sample"),
        ERKHeunScheduler(),
    ):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match="takes sigmas, with prediction_type='sample'"):
            pipe()
    with pytest.raises(ValueError, match="unknown preset 'digit'; did you mean digits"):
        EDM2Pipeline.from_checkpoint("digit")
    with pytest.raises(ValueError, match="precision must be one of"):
        EDM2Network.from_checkpoint("digits", precision="fp8")
    with pytest.raises(FileNotFoundError):
        EDM2Pipeline.from_checkpoint("nowhere/net.pkl")


@pytest.mark.parametrize(("message", "arguments"), [
    ("2 generators do not fit 3 images", dict(class_labels=CLASSES, generator=generators(2))),
    ("4 generators do not fit 3 images", dict(class_labels=CLASSES, generator=generators(4))),
    ("1 class_labels do not fit batch_size=4", dict(class_labels=[1], batch_size=4)),
    (r"latents must be \[3, 1, 8, 8\], not \[3, 1, 8, 9\]",
     dict(class_labels=CLASSES, latents=torch.zeros(3, 1, 8, 9))),
    (r"latents must be \[3, 1, 8, 8\], not \[2, 1, 8, 8\]",
     dict(class_labels=CLASSES, latents=torch.zeros(2, 1, 8, 8))),
    ("an integer or a list of integers, not", dict(class_labels=[0.5])),
    ("an integer or a list of integers, not", dict(class_labels=[])),
    ("an integer or a list of integers, not", dict(class_labels=[[1, 2]])),
    (r"class_labels are 0 to 9, not \[-1, 2\]", dict(class_labels=[-1, 2])),
    ("batch_size must be an integer of at least 1, not 0", dict(batch_size=0)),
    # what was neither an int nor a tensor ended in an error of torch's
    ("latents must be a tensor", dict(latents=np.zeros((2, 1, 8, 8)))),
    ("latents must be a tensor", dict(latents=torch.zeros(0, 1, 8, 8))),
    ("generator must be a torch.Generator or a list, not 0", dict(generator=0)),
    ("generator must be a torch.Generator or a list", dict(generator=[None, None], batch_size=2)),
    ("guidance must be a finite number", dict(guidance_scale=float("nan"))),
    ("guidance must be a finite number", dict(guidance_scale="2")),
])  # fmt: skip
def test_inputs_that_do_not_fit_together(message, arguments):
    """F12: one sentence each, before the network is called."""
    with pytest.raises(ValueError, match=message):
        quiet(EDM2Pipeline.from_checkpoint("digits"))(num_inference_steps=2, **arguments)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int8])
def test_integers_of_any_type_are_classes_and_sizes(dtype):
    """F12: of uint16 and uint64 torch compares none; a tuple of generators is a list of them."""
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    arguments = dict(num_inference_steps=2, output_type="latent")
    expected = pipe([1, 2], generator=generators(2), **arguments).images
    classes, seeds = np.array([1, 2], dtype), tuple(generators(2))
    assert torch.equal(pipe(classes, generator=seeds, **arguments).images, expected)
    assert len(pipe(1, batch_size=dtype(2), **arguments).images) == 2


def test_one_class_for_a_batch_and_latents_give_its_size(digits):
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    arguments = dict(num_inference_steps=3, output_type="latent")
    one = pipe(7, batch_size=3, generator=generators(), **arguments).images
    listed = pipe([7, 7, 7], generator=generators(), **arguments).images
    assert torch.equal(one, listed)
    assert len(pipe(latents=noise_of(digits), **arguments).images) == 3


def test_both_networks_are_called_as_modules():
    """F12: enable_model_cpu_offload moves a network when its forward is called."""
    pipe, calls = quiet(EDM2Pipeline.from_checkpoint("digits-autog")), []
    assert pipe.model_cpu_offload_seq.split("->") == ["guide", "network"]
    for name in ("network", "guide"):
        hook = lambda *_, name=name: calls.append(name)  # noqa: E731
        getattr(pipe, name).register_forward_pre_hook(hook)
    pipe(CLASSES, 4)
    assert calls == ["network", "guide"] * 7


def test_dtypes_survive(tmp_path):
    """G12: torch_dtype is honoured, and a pipeline that was cast is itself after loading."""
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits", w_stiff=0.5, w_con=0.3)).to(torch.float32)
    pipe.save_pretrained(tmp_path)
    again = quiet(EDM2Pipeline.from_pretrained(tmp_path))
    assert again.network.dtype == torch.float32
    written = [
        one(CLASSES, 6, generator=generators(), output_type="np").images for one in (pipe, again)
    ]
    assert np.array_equal(*written)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        network = EDM2Network.from_pretrained(tmp_path / "network", torch_dtype=dtype)
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
        assert network(torch.zeros(1, 1, 8, 8), torch.tensor(1.0)).isfinite().all()
        complete = EDM2Pipeline.from_pretrained(tmp_path, torch_dtype=dtype)
        assert complete.network.dtype == dtype


def test_nan_is_an_error_and_no_black_image(digits):
    """Finding 8."""
    pipe = quiet(EDM2Pipeline.from_checkpoint("digits"))
    network = pipe.network.network
    called = []

    def overflow(module, arguments, output):
        called.append(0)
        return output * torch.nan if len(called) == 4 else output

    network.register_forward_hook(overflow)
    with pytest.raises(NonFiniteError, match=r"sample 0 of the batch at step 1 \(sigma "):
        pipe(CLASSES, 8, latents=noise_of(digits))


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("class_labels must be an integer or a list of integers", {"class_labels": "cat"}),
        ("class_labels must be an integer or a list of integers", {"class_labels": [None]}),
        ("class_labels must be an integer or a list of integers", {"class_labels": [True]}),
        ("latents must be finite", {"latents": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}),
        ("latents must be finite", {"latents": torch.full((1, 1, 8, 8), torch.nan)}),
    ],
)
def test_other_types_are_refused(message, arguments):
    """Findings 8 and 22."""
    with pytest.raises(ValueError, match=message):
        quiet(EDM2Pipeline.from_checkpoint("digits"))(num_inference_steps=4, **arguments)


def latent_network(folder):
    """The digits' network, with Stability's VAE for its decoder."""
    checkpoint = read(Path(erk.models.presets.find_preset("digits").net))
    path = folder / "latent.safetensors"
    write_safetensors(path, checkpoint._replace(encoder=Part("StabilityVAEEncoder", {})))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    EDM2Network.from_checkpoint("digits").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("holds a 'Foo'; supported networks", lambda c: c["architecture"].update({"class": "Foo"})),
        ("names the unknown encoder 'Foo'", lambda c: c["encoder"].update({"class": "Foo"})),
        ("num_blocks", lambda c: c["architecture"]["kwargs"].update(num_blocks=-1)),
        ("more tensors than", lambda c: c["architecture"]["kwargs"].update(num_blocks=1_000_000)),
        ("stored_as must be float16 or", lambda c: c.update(stored_as="load")),
        ("precision must be auto or", lambda c: c.update(precision="fp8")),
        ("must have {'class'", lambda c: c.update(encoder=["DigitsEncoder"])),
    ],
)
def test_a_saved_config_is_checked(message, change, saved, tmp_path):
    """Finding 11: 15 s, a KeyError or a TypeError."""
    shutil.copytree(saved, tmp_path / "a")
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        EDM2Network.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("source", ["argument", "environment", "neither"])
def test_offline_holds_for_the_decoder_too(source, monkeypatch, tmp_path, saved):
    """Finding 10."""
    monkeypatch.setenv("ERK_OFFLINE", "1" if source == "environment" else "0")
    config = json.loads((saved / "config.json").read_text())
    config["encoder"] = {"class": "StabilityVAEEncoder", "kwargs": {}}
    shutil.copytree(saved, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    asked = source == "argument"
    network = EDM2Network.from_pretrained(tmp_path / "a", local_files_only=asked)
    assert network.encoder.offline == (source != "neither")
    built = EDM2Network.from_checkpoint(latent_network(tmp_path), offline=asked)
    assert built.encoder.offline == (source != "neither")
