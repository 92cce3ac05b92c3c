"""A calibration lowers the error on held-out seeds, and a stopped one continues."""

import numpy as np
import pytest
import torch

import erk
from erk.calibration.calibrate import calibrate, cost_of
from erk.calibration.card import read_card, write_card
from erk.calibration.parts import Parts
from erk.calibration.problem import gaussian, problem_for
from erk.calibration.solver_error import converged, errors
from erk.method.drift import NonFiniteError
from erk.method.settings import Settings
from erk.method.solvers import heun

SEEDS, HELD_OUT = range(50, 74), range(80, 96)
JOB = dict(steps=4, seeds=SEEDS, held_out=HELD_OUT, batch=8, evaluations=40)


@pytest.fixture(scope="module")
def model():
    return erk.load_model("digits")


@pytest.fixture(scope="module")
def card(model):
    return calibrate(model, **JOB)


def test_the_card_lowers_the_error_as_it_reports(model, card):
    noise, labels = erk.noise_and_labels(HELD_OUT, model)
    exact = converged(Settings(steps=4), model, noise, labels)
    plain, corrected = Settings(steps=4), Settings(steps=4, erk=card)
    before, after = (
        errors(s, model, noise, labels, exact).mean().item() for s in (plain, corrected)
    )
    report = card.report["held_out"]
    assert report["before"]["value"] == pytest.approx(before, rel=0.02)
    assert report["after"]["value"] == pytest.approx(after, rel=0.02)
    assert card.ratio[0] == pytest.approx(after / before, rel=0.05)
    assert card.ratio[0] < 0.5
    assert len(card.correction.weights) == len(card.report["explained"]) == 3


def test_a_written_card_samples_as_the_returned_one(model, card, tmp_path):
    write_card(tmp_path / "a.card.json", card)
    stored = read_card(tmp_path / "a.card.json")
    assert stored.correction == card.correction and stored.key == card.key
    noise, labels = erk.noise_and_labels(range(3), model)
    ends = [erk.sample(model, noise, labels, steps=4, erk=c) for c in (card, stored)]
    assert torch.equal(*ends)


def test_any_denoiser_can_be_calibrated():
    """Here the exact denoiser of a Gaussian, with `sample_shape` alone."""

    class Gaussian:
        sample_shape, label_dim, device = (4,), 0, torch.device("cpu")

        def __call__(self, x, sigma, labels=None):
            return gaussian(x, sigma, labels)

    card = calibrate(Gaussian(), steps=5, solver="dpm2", schedule="polynomial",
                     seeds=range(16), held_out=range(16, 32))  # fmt: skip
    assert card.ratio[0] < 0.01 and card.recipe["network"] == ""


def test_stored_reference_paths_give_the_same_card(model, card, tmp_path, monkeypatch):
    assert calibrate(model, folder=tmp_path, **JOB) == card
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(stored) == 3 + 2
    monkeypatch.setattr("erk.calibration.calibrate.reference_path", None)  # not called again
    monkeypatch.setattr("erk.calibration.calibrate.converged", converged)
    assert calibrate(model, folder=tmp_path, **JOB) == card
    assert stored == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize("change", [{"steps": 5}, {"batch": 4}, {"seeds": range(49, 73)},
                                    {"draw": None}])  # fmt: skip
def test_stored_paths_of_other_settings_are_not_used(model, tmp_path, change):
    small = JOB | {"seeds": range(8), "held_out": range(8, 16), "evaluations": 16}
    calibrate(model, folder=tmp_path, **small)
    count = len([*tmp_path.iterdir()])
    if "draw" in change:
        change = {"draw": lambda seeds: erk.noise_and_labels([s + 1 for s in seeds], model)}
    calibrate(model, folder=tmp_path, **small | change)
    assert len([*tmp_path.iterdir()]) > count


def test_a_network_without_a_sha256_is_not_mixed_up():
    problem = problem_for(gaussian, Settings(), draw=lambda seeds: (torch.zeros(1, 2), None))
    with pytest.raises(ValueError, match="sha256"):
        problem.key(range(3))


def test_parts_without_a_folder_are_computed_every_time():
    parts, calls = Parts(), []
    for _ in range(2):
        parts.keep("a", lambda: calls.append(1) or torch.zeros(1))
    assert len(calls) == 2


def test_a_batch_that_does_not_fit_into_memory_is_named():
    def fail():
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryError, match="smaller --batch"):
        Parts().keep("a", fail)


def test_levels_of_a_networks_time_have_a_cost():
    """`discrete` levels are those of the network: they are computed before it is replaced."""

    class Timed:
        sigma_min, sigma_max = 0.01, 50.0
        sigma = sigma_inv = staticmethod(lambda t: t)

    settings = Settings(solver="dpm2", schedule="discrete", steps=5)
    cost = cost_of(problem_for(Timed(), settings, draw=lambda _: None, batch=8), 24, 16, 40)
    assert cost["per_image"] == 10 and cost["guide_evaluations"] == 0
    # per sample: 24 paths of 40 and a run of 10; 16 paths and two runs; 8 rough paths of 20
    assert cost["evaluations"] == 24 * (40 + 10) + 16 * (40 + 20) + 8 * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": range(10), "held_out": range(5, 20)}, "seed 5 is in"),
        ({"held_out": [11]}, "--held-out needs 2 seeds or more, not 1"),
        ({"seeds": []}, "--seeds needs 1 seeds or more, not 0"),
        ({"seeds": [1.5, 2]}, "--seeds holds 1.5, which is not an integer"),
        ({"held_out": [80, 81, 80]}, "--held-out repeats a seed"),
        ({"directions": ["up"]}, "not 'up'"),
        ({"directions": ["drift", "drift"]}, "different names"),
        ({"solver": "heum"}, "heum"),
        ({"guidance": 2.0}, "guiding network"),
        ({"erk": "auto"}, "calibrate measures the plain solver: leave erk at None"),
        ({"w_stiff": 1.0}, "leave w_stiff at 0.0"),
        ({"w_con": 0.3}, "leave w_con at 0.5"),
        ({"erk_scale": "abs"}, "leave erk_scale at quadratic"),
        ({"S_churn": 5.0}, "leave S_churn at 0.0"),
        ({"pc_snr": 0.1}, "leave pc_snr at 0.0"),
        ({"adaptive_tau": 1.0}, "leave adaptive_tau at None"),
        ({"twin": lambda step, previous: (None, None)}, "leave twin at None"),
        ({"solver": heun}, "knows solvers by name"),
        ({"evaluations": 2}, "evaluations must be an integer of at least 8, not 2"),
        ({"batch": 0}, "batch must be an integer of at least 1, not 0"),
        ({"schedule": [80.0, 0.0]}, "no step between two levels above 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_evaluation(model, change, message, monkeypatch):
    """Findings 6 and 18."""
    monkeypatch.setattr(type(model), "__call__", None)
    with pytest.raises(ValueError, match=message):
        calibrate(model, **JOB | change)


def test_a_mistyped_setting_is_refused_with_the_nearest_name(model):
    with pytest.raises(TypeError, match=r"calibrate\(\) .* 'rhoo'; did you mean 'rho'"):
        calibrate(model, rhoo=7.0)


def test_numbers_and_arrays_of_numpy_give_the_same_card(model):
    """Finding 4: a KeyError after all the work, and numbers as text in the card."""
    small = JOB | {"seeds": np.arange(4), "held_out": np.arange(10, 12), "evaluations": 16}
    levels = np.array([80.0, 5.0, 0.5, 0.125])
    card = calibrate(model, **small | {"schedule": levels, "steps": np.int64(3)})
    plain = {"seeds": range(4), "held_out": range(10, 12), "schedule": levels.tolist(), "steps": 3}
    assert card == calibrate(model, **small | plain)
    assert card.recipe["steps"] == 3 and card.recipe["schedule"] == levels.tolist()


@pytest.mark.parametrize("gain", [float("nan"), 1e38])
@pytest.mark.parametrize("function", [calibrate, erk.tune])
def test_a_network_that_overflows_stops_the_work_at_once(function, gain):
    """Finding 17: LinAlgError, or JSON that cannot be written at the very end."""
    model = erk.from_denoiser(lambda x, sigma: x * gain, sample_shape=(4,))
    with pytest.raises(NonFiniteError, match="at step . .sigma"):
        function(model, steps=4, seeds=range(8), held_out=range(10, 18), evaluations=16)
