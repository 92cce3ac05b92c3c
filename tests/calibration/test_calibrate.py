"""A calibration lowers the error on held-out seeds, and a stopped one continues."""

import pytest
import torch

import erk
from erk.calibration.calibrate import calibrate, cost_of
from erk.calibration.card import read_card, write_card
from erk.calibration.parts import Parts
from erk.calibration.problem import gaussian, problem_for
from erk.calibration.solver_error import converged, errors
from erk.method.settings import Settings

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
        ({"held_out": [11]}, "at least two seeds"),
        ({"directions": ["up"]}, "not 'up'"),
        ({"directions": ["drift", "drift"]}, "different names"),
        ({"solver": "heum"}, "heum"),
        ({"guidance": 2.0}, "guiding network"),
    ],
)
def test_bad_arguments_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        calibrate(model, **JOB | change)
