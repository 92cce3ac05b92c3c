"""Wrong types at public functions of the method: one sentence that names the argument (J)."""

import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import erk
from erk.calibration.solver_error import converged, reference_path
from erk.method.arguments import require, shown
from erk.method.baselines import adaptive_heun
from erk.method.corrections import auto
from erk.method.drift import GuidedDrift
from erk.method.guidance import ErkGuid, erk_guid, telemetry
from erk.method.point import Step
from erk.method.sampler import steps
from erk.method.schedule import make_schedule
from erk.method.solvers import heun, make_solver
from erk.method.stiffness import stiffness

LEVELS, X = torch.tensor([2.0, 1.0]), torch.ones(2, 3)


def denoiser(x, sigma, labels=None):
    return x / (1 + sigma**2)


def step_of():
    return heun(GuidedDrift(denoiser), X, LEVELS[0], LEVELS[1], None)


def paired_step():
    twin = DRIFT(2 * X, LEVELS[0])
    return Step(X, DRIFT(X, LEVELS[0]), LEVELS[1], twin=twin, h=torch.tensor(1.0))


DRIFT = GuidedDrift(denoiser)
DOORS = [
    (lambda bad: GuidedDrift(bad), "model"),
    (lambda bad: GuidedDrift(denoiser, guide_model=bad or 3, guidance=2.0), "guide_model"),
    (lambda bad: GuidedDrift(denoiser, guide_model=denoiser, guidance=bad), "guidance"),
    (lambda bad: GuidedDrift(denoiser, interval=bad or 3), "interval"),
    (lambda bad: stiffness(bad, DRIFT(X, LEVELS[0])), "a"),
    (lambda bad: stiffness(DRIFT(X, LEVELS[0]), bad), "b"),
    (lambda bad: erk_guid(bad, 0.5, 0.5), "step"),
    (lambda bad: erk_guid(step_of(), bad, 0.5), "w_stiff"),
    (lambda bad: ErkGuid(0.5, bad)(step_of()), "w_con"),
    (lambda bad: telemetry(step_of(), 0.5, 0.5, bad), "scale"),
    (lambda bad: next(steps(bad, X, LEVELS, heun)), "drift"),
    (lambda bad: next(steps(DRIFT, bad, LEVELS, heun)), "x"),
    (lambda bad: next(steps(DRIFT, X, bad, heun)), "sigmas"),
    (lambda bad: next(steps(DRIFT, X, LEVELS, bad)), "solver"),
    (lambda bad: next(steps(DRIFT, X, LEVELS, heun, bad)), "guidance"),
    (lambda bad: next(steps(DRIFT, X, LEVELS, heun, churn=bad or 3)), "churn"),
    (lambda bad: next(adaptive_heun(bad, X, LEVELS, 0.5)), "drift"),
    (lambda bad: next(adaptive_heun(DRIFT, X, bad, 0.5)), "sigmas"),
    (lambda bad: make_schedule(bad or {}), "schedule"),
    (lambda bad: make_schedule("edm", bad), "steps"),
    (lambda bad: make_schedule("edm", 4, sigma_max=bad), "sigma_max"),
    (lambda bad: make_schedule("edm", 4, rho=bad or {}), "rho"),
    (lambda bad: make_solver("dpmpp", bad or 3), "options"),
    (lambda bad: auto(bad, LEVELS), "solver"),
    (lambda bad: auto(heun, bad), "sigmas"),
    (lambda bad: converged(bad, denoiser, X), "settings"),
    (lambda bad: converged(erk.Settings(), denoiser, bad), "noise"),
    (lambda bad: reference_path(DRIFT, X, LEVELS, bad), "evaluations"),
    (lambda bad: reference_path(DRIFT, X, bad), "sigmas"),
]


@pytest.mark.parametrize(("door", "name"), DOORS, ids=[f"{i}-{d[1]}" for i, d in enumerate(DOORS)])
@pytest.mark.parametrize("bad", [None, "x"])
def test_a_wrong_type_is_refused_by_the_name_of_the_argument(door, name, bad):
    bad = 3 if bad == "x" and name in ("schedule", "drift", "interval") else bad
    with pytest.raises(ValueError, match=f"^{name} must be .*, not .*"):
        door(bad)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_an_interval_may_be_any_pair(kind):
    drift = GuidedDrift(denoiser, None, denoiser, 2.0, kind([0.5, 1.0]))
    assert [drift.denoise(X, level)[1] is None for level in LEVELS] == [True, False]


def test_an_unknown_solver_may_be_of_any_type():
    with pytest.raises(ValueError, match=r"unknown solver '\[\]'"):
        make_solver([])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("a\nb", r"'a\\nb'"),
        ("x" * 99, f"'{'x' * 79}..."),
        (torch.zeros(2, 3), "torch.float32 [2, 3]"),
        (np.zeros(4, np.int8), "a NumPy array int8 [4]"),
        (torch.tensor(3), "tensor(3)"),
        ([[1], 2], "[[1], 2]"),
    ],
)
def test_values_are_shown_on_one_short_line(value, text):
    assert shown(value) == text.replace("\\\\", "\\")
    require(True, "a", "b", value)
    with pytest.raises(ValueError) as caught:
        require(False, "a", "b", value)
    assert str(caught.value) == f"a must be b, not {shown(value)}."


class OfTime(torch.nn.Module):
    """A network (x, time)."""

    def forward(self, x, time):
        return x / (1 + time[:, None] ** 2)


def with_labels(function):
    """A decorator that changes the arguments, as adapters of one's own do."""

    @functools.wraps(function)
    def call(x, sigma, labels=None):
        return function(x, sigma)

    return call


class Silent:
    """Does not say what it takes, as some built-in functions."""

    __signature__ = 3

    def __call__(self, x, sigma, labels=None):
        return x


def test_a_network_that_can_be_called_is_taken():
    for network in (with_labels(lambda x, sigma: x), Silent(), functools.partial(denoiser)):
        erk.sample(network, X, steps=3)


ONE = "must be a network or a function of"
MISTAKES = {
    "a network of x alone": (lambda: GuidedDrift(lambda x: x), f"model {ONE} (x, sigma, labels)"),
    "a module without labels": (lambda: GuidedDrift(OfTime()), f"model {ONE} (x, sigma, labels)"),
    "a function without labels": (
        lambda: erk.sample(lambda x, sigma: x, X, steps=3),
        "it takes two arguments: add labels=None, or give erk.from_denoiser(...), which calls it",
    ),
    "a guide without labels": (
        lambda: GuidedDrift(denoiser, None, OfTime(), 2.0),
        f"guide_model {ONE} (x, sigma, labels)",
    ),
    "a network of noise without an adapter": (
        lambda: erk.sample(lambda x, sigma, labels: SimpleNamespace(sample=x), X, steps=3),
        "a network that predicts something else needs an adapter, such as erk.from_epsilon.",
    ),
    "a solver without memory": (
        lambda: erk.Settings(solver=lambda drift, x, sigma, sigma_next: x),
        "or a function (drift, x, sigma, sigma_next, memory=None) -> erk.Step, not <function",
    ),
    "a twin of one argument": (
        lambda: erk.Settings(twin=lambda step: (None, None)),
        "twin must be a function (step, previous step or None) -> (twin, h), not <function",
    ),
    "a guidance without memory": (
        lambda: next(steps(DRIFT, X, LEVELS, heun, lambda step: step.x)),
        "guidance must be a function of (step, memory), not <function",
    ),
    "a callback without arguments": (
        lambda: erk.sample(denoiser, X, steps=3, callback=lambda: None),
        "callback must be a function of an erk.State, not <function",
    ),
    "noise without arguments": (
        lambda: erk.sample(denoiser, X, steps=3, randn_like=lambda: X),
        "randn_like must be a function of a tensor [B, ...], not <function",
    ),
    "a decoder without arguments": (
        lambda: erk.animate([], "a.gif", decode=lambda: X),
        "decode must be a function of samples [B, ...], not <function",
    ),
    "progress with an argument": (
        lambda: erk.calibrate(CLASSES, progress=lambda done: None),
        "progress must be a function without arguments, not <function",
    ),
    "a draw without seeds": (
        lambda: erk.calibrate(CLASSES, draw=lambda: X),
        "draw must be a function of a list of seeds, not <function",
    ),
    "an adapter's network of x alone": (
        lambda: erk.from_denoiser(lambda x: x), f"model {ONE} (x, time) or (x, time, labels)",
    ),
    "an adapter's network with classes": (
        lambda: erk.from_denoiser(OfTime(), label_dim=3), f"model {ONE} (x, time, labels)",
    ),
    "labels that the network does not take": (
        lambda: erk.sample(erk.from_denoiser(OfTime()), X, torch.zeros(2, 4), steps=3),
        "the network takes (x, time) alone",
    ),
    "labels of another number of classes": (
        lambda: erk.sample(CLASSES, X, torch.zeros(2, 4), steps=3),
        "labels must be [B, 10], or [B] of class numbers for a network that takes them, not [2, 4]",
    ),
    "a twin without h": (
        lambda: erk_guid(step_of()._replace(twin=DRIFT(X, LEVELS[1]), h=None), 1.0, 0.5),
        "a twin but no h",
    ),
    "a weight below 0": (
        lambda: erk_guid(step_of(), -1.0, 0.5), "w_stiff must be a number of at least 0, not -1.0",
    ),
    "a weight that is not a number": (
        lambda: erk_guid(step_of(), 1.0, float("nan")), "w_con must be a number of at least 0",
    ),
    "a twin that would broadcast": (
        lambda: erk_guid(step_of()._replace(twin=DRIFT(X[:1], LEVELS[1])), 1.0, 0.5),
        "b.x must be of the shape [2, 3] of a.x, not torch.float32 [1, 3]",
    ),
    "a result that would broadcast": (
        lambda: erk_guid(paired_step()._replace(x=X[:1]), 1.0, 0.5),
        "x of the step must be [2, 3] as its start, not torch.float32 [1, 3]",
    ),
}  # fmt: skip
CLASSES = erk.from_denoiser(
    lambda x, sigma, labels=None: x / (1 + sigma[:, None] ** 2), sample_shape=(3,), label_dim=10
)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_network_that_takes_too_few_arguments(name):
    """It was a TypeError from the first evaluation, after the start of a run."""
    call, expected = MISTAKES[name]
    with pytest.raises(ValueError) as raised:
        call()
    assert expected in str(raised.value)


NOTES = {
    "a function of a single level": (
        lambda: erk.sample(lambda x, sigma, labels: x / sigma[:, None], X, steps=3),
        "(torch.float32 [2, 3], torch.float32 [], None)",
    ),
    "an adapter's network": (
        lambda: erk.sample(erk.from_denoiser(lambda x, sigma: x @ x), X, steps=3),
        "(torch.float32 [2, 3], torch.float32 [2])",
    ),
    "class numbers from one-hot labels": (
        lambda: erk.sample(
            erk.from_denoiser(lambda x, sigma, labels: x * torch.eye(3)[labels], label_dim=3),
            X, torch.eye(3)[:2], steps=3,
        ),
        "(torch.float32 [2, 3], torch.float32 [2], torch.float32 [2, 3])",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_an_error_in_a_network_says_what_it_was_called_with(name):
    call, shapes = NOTES[name]
    with pytest.raises((IndexError, RuntimeError)) as raised:
        call()
    assert raised.value.__notes__ == [f"The network was called with {shapes}."]


def test_a_misspelt_keyword_of_an_adapter():
    """It was taken as a property of the data and ignored."""
    with pytest.raises(TypeError, match="'label_dims'; did you mean 'label_dim'"):
        erk.from_denoiser(denoiser, label_dims=10)
    with pytest.raises(TypeError, match="'width': it takes sample_shape, label_dim, device."):
        erk.from_denoiser(denoiser, width=10)


def test_labels_that_are_left_out_are_warned_of():
    with pytest.warns(UserWarning, match="has 10 classes but gets no labels") as warned:
        erk.sample(CLASSES, X, steps=3)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="gets no labels"):
        next(erk.trajectory(CLASSES, X, steps=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erk.sample(CLASSES, X, torch.zeros(2, 10), steps=3)
        erk.sample(denoiser, X, steps=3)


def test_noise_that_a_noise_level_has_multiplied_is_warned_of():
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="standard deviation .*, but 1 is meant") as warned:
        erk.sample(denoiser, 80 * noise, steps=3)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erk.sample(denoiser, noise, steps=3)


def test_the_signed_step_of_a_loop_of_numbers():
    """sigmas.tolist() makes h a float."""
    first, second = DRIFT(X, LEVELS[0]), DRIFT(X * 0.9, LEVELS[1])
    pairs = [erk.Step(X, first, twin=second, h=h) for h in (0.5, torch.tensor(0.5))]
    ours = [erk_guid(step, 1.0, 0.0) for step in pairs]
    assert torch.equal(*ours) and not torch.equal(ours[0], X)


def test_an_object_is_called_as_its_call_says():
    """A callback with a method `forward` was asked for that one's arguments."""

    class Player:
        def __init__(self):
            self.seen = []

        def __call__(self, state):
            self.seen.append(state.index)

        def forward(self):
            pass

    player = Player()
    erk.sample(denoiser, X, steps=3, callback=player)
    assert player.seen == [0, 1, 2]


def test_the_note_of_a_failed_network_does_not_hide_its_error():
    class Labels:
        shape = (1,)

    def network(x, sigma, labels):
        raise AttributeError("its own")

    with pytest.raises(AttributeError, match="its own") as error:
        erk.sample(network, X, Labels(), steps=3)
    assert "The network was called with (torch.float32" in error.value.__notes__[0]
