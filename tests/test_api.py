"""The public functions: for an `erk.Model`, an adapter and a function of the user's."""

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import erk
import metrics
from erk.method.fields import field, fields
from erk.method.guidance import TELEMETRY

STD = 0.5


def gaussian(x, sigma, labels=None):
    """D(x; sigma) for data of deviation STD."""
    level = torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1))
    return STD**2 / (STD**2 + level**2) * x


def adapter(**data):
    return erk.from_denoiser(gaussian, **{"sample_shape": (3, 8, 8)} | data)


@pytest.fixture(scope="module")
def digits():
    model = erk.load_model("digits")
    return model, *erk.noise_and_labels(range(4), model)


def test_every_public_name_is_importable():
    for name in erk.__all__:
        assert callable(getattr(erk, name)), name


def test_defaults_of_sample_are_those_of_the_settings():
    for name, parameter in inspect.signature(erk.sample).parameters.items():
        if name in {one.name for one in fields()} - {"dtype"}:
            assert parameter.default == field(name).default, name


def test_the_visible_signature_of_sample():
    names = list(inspect.signature(erk.sample).parameters)
    assert names[:17] == [
        "model", "noise", "labels", "solver", "schedule", "steps", "sigma_min", "sigma_max",
        "rho", "guide_model", "guidance", "guidance_interval", "w_stiff", "w_con", "erk", "dtype",
        "callback",
    ]  # fmt: skip


def test_sample_returns_the_last_state_of_the_trajectory(digits):
    model, noise, labels = digits
    chosen = dict(steps=6, w_stiff=0.5, w_con=0.3)
    trace = erk.Trace()
    x0 = erk.sample(model, noise, labels, callback=trace, **chosen)
    states = list(erk.trajectory(model, noise, labels, **chosen))
    assert torch.equal(states[-1].x, x0) and len(states) == 6
    assert set(trace.result()) == set(TELEMETRY)
    stiffness = torch.stack([state.stiffness for state in states])
    assert torch.equal(trace.result()["stiffness"].nan_to_num(), stiffness.nan_to_num())
    assert torch.equal(trace.sigmas, erk.Settings(steps=6).sigmas(model)[:-1])


def test_every_state_is_complete(digits):
    model, noise, labels = digits
    sigmas = erk.Settings(steps=5).sigmas(model)
    x = noise * sigmas[0]
    for i, state in enumerate(erk.trajectory(model, noise, labels, steps=5, w_stiff=0.5)):
        assert state.index == i and state.sigma == sigmas[i] and state.sigma_next == sigmas[i + 1]
        assert torch.equal(state.step.start.x, x)
        assert torch.allclose(state.denoised, model(x, sigmas[i], labels), atol=1e-4)
        assert torch.equal(state.x, state.step.x + state.correction)
        assert state.stiffness.shape == state.gate.shape == (4,)
        x = state.x


def test_a_trajectory_needs_no_gradients_and_checks_settings_at_once():
    weight = torch.ones((), requires_grad=True)
    states = erk.trajectory(lambda x, s, y: weight * gaussian(x, s), torch.ones(2, 3), steps=3)
    assert not any(state.x.requires_grad for state in states)
    with pytest.raises(ValueError, match="unknown solver"):
        erk.trajectory(gaussian, torch.ones(2, 3), solver="heum")


def test_an_unknown_argument_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match="did you mean 'solver_options'"):
        erk.sample(gaussian, torch.ones(2, 3), solver_option={})
    with pytest.raises(TypeError, match="did you mean 'guide_model'"):
        erk.sample(gaussian, torch.ones(2, 3), guide_modle=gaussian)
    with pytest.raises(TypeError, match="it takes model, .*w_stiff, .*card, .*afs"):
        erk.sample(gaussian, torch.ones(2, 3), xyz=1)
    with pytest.raises(TypeError, match="trajectory.. got an unexpected argument 'trace'"):
        erk.trajectory(gaussian, torch.ones(2, 3), trace=True)


class PerSample(torch.nn.Module):
    """A network as others write it: it takes one level per sample, and keeps what it saw."""

    def forward(self, x, sigma, labels=None):
        self.seen = sigma
        return STD**2 / (STD**2 + sigma[:, None] ** 2) * x


@pytest.mark.parametrize("guided", [False, True])
def test_a_module_gets_a_level_per_sample_and_a_function_one(guided):
    """Friction 2: networks index sigma [B]; the samples are those of the same function."""
    noise, module = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), PerSample()
    labels = {"labels": torch.ones(3, 1), "guide_labels": torch.zeros(3, 1), "guidance": 2.0}
    more = dict(guide_model=module, **labels) if guided else {}
    x0 = erk.sample(module, noise, steps=4, w_stiff=0.5, **more)
    assert module.seen.shape == (6 if guided else 3,) and module.seen.dtype == torch.float32
    seen = []

    def function(x, sigma, labels):
        seen.append(sigma.ndim)
        return gaussian(x, sigma)

    more = dict(guide_model=function, **labels) if guided else {}
    assert torch.equal(erk.sample(function, noise, steps=4, w_stiff=0.5, **more), x0)
    assert {*seen} == {0}


WRONG_INPUTS = [
    (torch.zeros(2, 3, 8, 9), {}, r"samples \[B, 3, 8, 8\], but the noise is \[2, 3, 8, 9\]"),
    (torch.zeros(3, 8, 8), {}, r"samples \[B, 3, 8, 8\], but the noise is \[3, 8, 8\]"),
    (torch.zeros(0, 3, 8, 8), {}, "no samples"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.int64), {}, "floating-point numbers, not torch.int64"),
    (np.zeros((2, 3, 8, 8)), {}, "noise must be a tensor"),
    (torch.full((2, 3, 8, 8), torch.nan), {}, "noise of sample 0 has NaN"),
    (torch.zeros(3, 3, 8, 8), {"labels": torch.eye(2)}, "each of the 3 samples .* not 2"),
    (
        torch.zeros(2, 3, 8, 8),
        {"guide_labels": torch.eye(3), "guidance": 2.0, "guide_model": lambda x, sigma, labels: x},
        "guide_labels .* not 3",
    ),
    (torch.zeros(2, 3, 8, 8), {"guide_labels": torch.eye(2)}, "guide_labels need a guiding"),
    (torch.zeros(2, 3, 8, 8), {"guidance_interval": (0, 1)}, "guidance_interval .* needs model"),
    (torch.zeros(2), {}, r"noise must be a tensor \[B, ...\] .* \[2\]"),
    (torch.zeros(2, 3, 8, 8), {"steps": 0}, "steps must be an integer from 1 .* not 0"),
    (torch.zeros(2, 3, 8, 8), {"steps": -3}, "steps must be an integer from 1 .* not -3"),
]


@pytest.mark.parametrize(("noise", "more", "message"), WRONG_INPUTS)
@pytest.mark.parametrize("function", [erk.sample, erk.trajectory])
def test_wrong_inputs_are_refused_before_the_first_evaluation(function, noise, more, message):
    """Friction 12."""

    def never(x, sigma):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        function(erk.from_denoiser(never, sample_shape=(3, 8, 8)), noise, **more)


X = torch.zeros(2, 3, 8, 8)
LEVELS = [0.9, 0.1]
DOORS = [
    (lambda bad: erk.sample(bad, X), "model"),
    (lambda bad: erk.sample(gaussian, bad), "noise"),
    (lambda bad: erk.sample(gaussian, X, callback=bad or 3), "callback"),
    (lambda bad: erk.sample(gaussian, X, randn_like=bad), "randn_like"),
    (lambda bad: erk.sample(gaussian, X, solver=bad or 3), "solver"),
    (lambda bad: erk.trajectory(bad, X), "model"),
    (lambda bad: erk.Trace()(bad), "state"),
    (lambda bad: erk.from_epsilon(gaussian, bad), "alphas_cumprod"),
    (lambda bad: erk.from_v(bad, LEVELS), "model"),
    (lambda bad: erk.from_flow(gaussian, sample_shape=bad or 3), "sample_shape"),
    (lambda bad: erk.from_denoiser(gaussian, bad and "x"), "sigma_min"),
    (lambda bad: erk.from_denoiser(gaussian, label_dim=bad), "label_dim"),
    (lambda bad: erk.save_images(X, bad), "folder"),
    (lambda bad: erk.plot_trace(bad), "trace"),
    (lambda bad: erk.plot_trace([], bad or 3), "path"),
    (lambda bad: erk.animate(bad, "a.gif"), "states"),
    (lambda bad: erk.animate([], "a.gif", bad or 3), "decode"),
    (lambda bad: erk.calibrate(gaussian, corrections=bad), "corrections"),
    (lambda bad: erk.calibrate(gaussian, bad), "nfe"),
    (lambda bad: erk.calibrate(gaussian, progress=bad), "progress"),
]


@pytest.mark.parametrize(("door", "name"), DOORS, ids=[f"{i}-{d[1]}" for i, d in enumerate(DOORS)])
@pytest.mark.parametrize("bad", [None, 2.5])
def test_a_wrong_type_is_refused_by_the_name_of_the_argument(door, name, bad):
    """J: tracebacks of the inside."""
    with pytest.raises(ValueError, match=f"^{name} (must be|takes one or more of) "):
        door(bad)


def test_devices_and_precisions_of_any_type_are_looked_up():
    for bad in ([], None, 2.5):
        with pytest.raises(ValueError, match="is no device: give cpu"):
            adapter(device=bad)
        with pytest.raises(ValueError, match="unknown precision"):
            erk.load_model("digits", precision=bad)


@pytest.mark.parametrize("name", ["labels", "guide_labels"])
def test_labels_of_a_network_with_classes_are_tensors(digits, name):
    """Finding 22: an AttributeError for a list."""
    model, noise, labels = digits
    more = {"labels": labels, "guide_labels": labels, "guide_model": model, "guidance": 2.0}
    more[name] = [3] * len(noise)
    with pytest.raises(ValueError, match=rf"^{name} must be a tensor, .* not list: give torch"):
        erk.sample(model, noise, **more)


def test_auto_that_cannot_act_warns():
    """N11: unipc's pair has no multiple that suits all data; heun's has."""
    noise = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="finds no multiple that suits all data .* 'unipc'"):
        x0 = erk.sample(gaussian, noise, solver="unipc", steps=6, erk="auto")
    assert torch.equal(x0, erk.sample(gaussian, noise, solver="unipc", steps=6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erk.sample(gaussian, noise, steps=6, erk="auto")


@pytest.mark.parametrize("seeds", [range(16), (5,), [3, 2**32 + 1]])
def test_noise_and_labels_of_anything_with_a_shape(seeds):
    """N6."""

    class Shape:
        sample_shape = (2, 4)

    noise, labels = erk.noise_and_labels(seeds, Shape())
    assert noise.shape == (len(seeds), 2, 4) and noise.dtype == torch.float32 and labels is None
    last = torch.Generator().manual_seed(seeds[-1] % 2**32)
    assert torch.equal(noise[-1], torch.randn(2, 4, generator=last))


def test_noise_and_labels_of_an_adapter():
    """device defaults to the CPU, label_dim to 0; the draws are an erk.Model's."""
    noise, labels = erk.noise_and_labels([3, 4], adapter())
    assert noise.shape == (2, 3, 8, 8) and labels is None
    assert torch.equal(noise[1], erk.noise_and_labels([4], adapter())[0][0])
    _, labels = erk.noise_and_labels([3, 4], adapter(label_dim=10))
    assert labels.shape == (2, 10) and labels.sum() == 2
    with pytest.raises(ValueError, match="no sample_shape: give it one"):
        erk.noise_and_labels([3], erk.from_denoiser(gaussian))


def test_images_are_saved_by_seed(tmp_path, digits):
    model, noise, labels = digits
    images = model.decode(erk.sample(model, noise, labels, steps=4))
    paths = erk.save_images(images, tmp_path / "out", seeds=[7, 8, 9, 10])
    assert [path.name for path in paths] == [f"{seed:06d}.png" for seed in (7, 8, 9, 10)]
    assert np.array_equal(np.asarray(Image.open(paths[1])), images[1, 0].numpy())
    with pytest.raises(ValueError, match="must be uint8 .N, C, H, W. with C = 1 or 3"):
        erk.save_images(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), tmp_path)
    with pytest.raises(ValueError, match="4 images need as many seeds, not 2"):
        erk.save_images(images, tmp_path, seeds=[1, 2])


BAD_IMAGES = [
    (torch.ones(2, 1, 4, 4, dtype=torch.int64), {}, "images must be uint8 .* not int64"),
    (torch.ones(2, 1, 4, 4, dtype=torch.bool), {}, "images must be uint8 .* not bool"),
    (torch.rand(2, 1, 4, 4), {}, r"not float32 .* model.decode\(x0\), or, for pixels in -1"),
    (np.zeros((2, 1, 4, 4)), {}, "images must be uint8 .* not float64"),
    (np.zeros((2, 1, 4, 4), np.uint8), {"seeds": [1, 1]}, "seeds repeat a number"),
]


@pytest.mark.parametrize(("images", "more", "message"), BAD_IMAGES, ids=lambda part: str(part)[:20])
def test_what_is_no_image_is_not_saved_as_one(images, more, message, tmp_path):
    """Finding 7: all white, all black, or eight images in one file."""
    with pytest.raises(ValueError, match=message):
        erk.save_images(images, tmp_path / "a", **more)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_is_named_in_a_sentence(tmp_path, digits):
    """OSErrors came raw: "[Errno 17] File exists"."""
    (tmp_path / "file").write_text("")
    model, noise, labels = digits
    states = [*erk.trajectory(model, noise, labels, steps=4)]
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    bad = [(tmp_path / "file", "is not a folder"), (tmp_path / "file" / "a", "is not a folder")]
    if Path("/proc").exists():
        bad.append((Path("/proc/a"), "cannot (create the folder|write to)"))
    for folder, message in bad:
        for write in (
            lambda path: erk.save_images(pixels, path),
            lambda path: erk.plot_trace(states, path / "a.png"),
            lambda path: erk.animate(states, path / "a.gif"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                write(folder)
            assert str(folder) in str(caught.value) and "choose another folder" in str(caught.value)


def test_only_public_names_are_listed():
    for module in (erk, metrics):
        shown = [name for name in dir(module) if not name.startswith("_")]
        assert shown == sorted(module.__all__)


def test_nothing_to_draw_and_nothing_to_plot(digits):
    """Finding 22: 'stack expects a non-empty TensorList'."""
    with pytest.raises(ValueError, match="there are no seeds: give at least one"):
        erk.noise_and_labels([], digits[0])
    for empty in (erk.Trace(), []):
        with pytest.raises(ValueError, match="this trace has no steps"):
            erk.plot_trace(empty)


def test_a_card_lowers_the_held_out_error(digits):
    model, noise, labels = digits
    fixed = dict(solver="heun", schedule="edm", corrections=["stepwise"], evaluations=48)
    card = erk.calibrate(model, 9, seeds=16, **fixed)
    ratio = card.errors["ratio"]
    assert ratio["value"] + 3 * ratio["error"] < 1 and card.warning == ""
    x0 = erk.sample(model, noise, labels, card=card)
    assert not torch.equal(x0, erk.sample(model, noise, labels, steps=5))
    states = [state.x for state in erk.trajectory(model, noise, labels, card=card, steps=5)]
    assert torch.equal(x0, states[-1])
    for more, message in (({"steps": 6}, "sets steps to 5"), ({"solver": "dpm2"}, "sets solver"),
                          ({"w_stiff": 1.0}, "sets w_stiff"), ({"S_churn": 2}, "sets S_churn"),
                          ({"erk": "auto"}, "sets erk to a correction")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            erk.sample(model, noise, labels, card=card, **more)
    with pytest.raises(ValueError, match="sets steps"):  # the default, but given
        erk.sample(model, noise, labels, card=card, steps=32)
    with pytest.raises(TypeError, match="did you mean"):
        erk.sample(model, noise, labels, card=card, w_stif=1)


def test_a_card_for_an_adapter():
    fixed = dict(solver="dpm2", schedule="polynomial", corrections=["stepwise"], evaluations=40)
    calls = []
    card = erk.calibrate(adapter(), 8, seeds=8, progress=lambda: calls.append(1), **fixed)
    assert len(calls) > 3  # three sets of seeds and the fits
    assert card.errors["ratio"]["value"] < 1 and card.settings.schedule == "polynomial"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erk.sample(adapter(), torch.ones(1, 3, 8, 8), card=card)


def test_a_trace_is_plotted_from_states_or_a_collected_one(tmp_path, digits):
    model, noise, labels = digits
    chosen = dict(steps=6, w_stiff=0.5, w_con=0.3)
    trace = erk.Trace()
    erk.sample(model, noise, labels, callback=trace, **chosen)
    image = erk.plot_trace(trace, tmp_path / "a.png", w_con=0.3)
    states = erk.trajectory(model, noise, labels, **chosen)
    assert erk.plot_trace(states, w_con=0.3) == image == (tmp_path / "a.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to plot"):
        erk.plot_trace(erk.trajectory(model, noise, labels, steps=2))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_trajectory_is_animated(tmp_path, suffix, digits):
    model, noise, labels = digits
    path = tmp_path / f"a{suffix}"
    states = erk.trajectory(model, noise, labels, steps=4)
    assert erk.animate(states, path, model.decode) == path
    assert Image.open(path).n_frames == 5
    states = [*erk.trajectory(adapter(), torch.randn(2, 3, 8, 8), steps=3)]
    erk.animate(states, path)
    erk.animate(states, path, captions=np.array(["a"] * len(states[0].x)))
    with pytest.raises(ValueError, match=".gif or .webp"):
        erk.animate(states, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="without states"):
        erk.animate([], path)


OTHER = {"erk_scale": "abs", "churn_rule": "edm", "pc_stochastic": False}


@pytest.mark.parametrize("one", [one for one in fields() if one.needs], ids=lambda one: one.name)
def test_a_setting_without_the_one_it_needs_is_refused(one):
    noise, given = torch.zeros(1, 2), {one.name: OTHER.get(one.name, 0.3)}
    sentence = f"^{one.name} has no effect without {one.needs}: give both, or neither."
    more = [{}, {"erk": None}] + [{"erk": "auto"}] * (one.needs != "w_stiff")
    for function in (erk.sample, erk.trajectory):
        for other in more:
            with pytest.raises(ValueError, match=sentence):
                function(lambda x, sigma, labels=None: x / 2, noise, **given, **other)


def test_a_guide_without_a_weight_is_refused():
    noise = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="^guide_model has no effect without guidance: give both"):
        erk.sample(lambda x, sigma, labels=None: x / 2, noise, guide_model=gaussian)


def test_a_sweep_may_give_both_and_by_position():
    noise = torch.ones(1, 2)
    plain = erk.sample(lambda x, sigma, labels=None: x / 2, noise, steps=4)
    swept = erk.sample(
        lambda x, sigma, labels=None: x / 2, noise, None, "heun", None, 4, 0.002, 80.0, None, None,
        None, None, 0.0, w_con=0.3,
    )  # fmt: skip
    assert torch.equal(plain, swept)
