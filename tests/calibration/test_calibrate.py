"""A calibration returns the best sampler of a contest, and a stopped one continues."""

import itertools
import json

import numpy as np
import pytest
import torch

import erk
from erk.calibration.calibrate import calibrate, cost_of, plan_of, seeds_of
from erk.calibration.card import content_of, parse_card, read_card, sampler_of
from erk.calibration.fit import USUAL
from erk.calibration.parts import Parts
from erk.calibration.problem import gaussian, problem_for
from erk.calibration.solver_error import converged, errors
from erk.method.drift import NonFiniteError
from erk.method.settings import Settings
from erk.method.solvers import heun
from scripts.studies.data import mixture

SMALL = dict(seeds=8, batch=8, evaluations=40)
HEUN = dict(solver="heun", schedule="edm", corrections=["stepwise"])


class Denoiser:
    """A closed form with the attributes of a model; counts its evaluations."""

    sample_shape, label_dim, device, sha256 = (4,), 0, torch.device("cpu"), "f" * 64

    def __init__(self, denoise=gaussian):
        self.denoise, self.evaluations = denoise, 0

    def __call__(self, x, sigma, labels=None):
        self.evaluations += len(x)
        return self.denoise(x, sigma, labels)


def clusters():
    """Return the exact denoiser of a few Gaussians of spread .1 on the scale of sigma_data."""
    means = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)) * 0.5
    return Denoiser(mixture(means, 0.1))


@pytest.fixture(scope="module")
def run():
    """A calibration in which everything competes: the card, and the evaluations it took."""
    model = clusters()
    return calibrate(model, 5, **SMALL), model.evaluations


@pytest.fixture
def card(run):
    return run[0]


def test_the_card_is_better_than_every_published_sampler_on_fresh_seeds(card):
    value, error = card.errors["ratio"]["value"], card.errors["ratio"]["error"]
    assert value + 2 * error < 0.8 and card.warning == ""
    assert card.errors["heun"]["value"] > card.errors["published"]["value"]
    kinds = {(one["levels"], one["correction"]) for one in card.report["contenders"]}
    assert {("published", "none"), ("published", "stepwise"), ("dynamic", "stepwise"),
            ("refined", "stepwise"), ("refined", "end-to-end")} <= kinds  # fmt: skip
    first = card.report["contenders"][0]
    assert (first["levels"], first["correction"]) == ("published", "none")
    chosen = min(card.report["contenders"], key=lambda one: one["error"]["value"])
    assert chosen["solver"] == card.settings.solver


def test_the_reported_errors_are_those_of_seeds_that_nobody_has_seen(card):
    model, fresh = clusters(), range(900_016, 900_024)
    noise, _ = erk.noise_and_labels(fresh, model)
    exact = converged(card.settings, model, noise, evaluations=40)
    measured = errors(card.settings, card.settings.drift(model), noise, exact)
    expected = {"value": measured.mean(), "median": measured.quantile(0.5)}
    expected["greatest"] = measured.max()
    shown = {name: card.errors["card"][name] for name in expected}
    assert shown == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-3)
    assert card.errors["card"]["seeds"] == 8


def test_a_printed_card_says_what_its_seeds_can_show(card):
    """One sample that ends elsewhere decides the mean, and few seeds may not have one."""
    lines = str(card).splitlines()
    first, last = card.settings.erk.sigmas[0], card.settings.erk.sigmas[-1]
    assert lines[0].startswith(f"{card.settings.solver} (")
    assert f"noise levels from {first:.4g} to {last:.4g}" in lines[0]
    assert lines[1].startswith("distance to the converged solution, on 8 seeds")
    own = next(line for line in lines if line.startswith("this card"))
    assert own.split()[-2:] == [f"{card.errors['card'][k]:.4g}" for k in ("median", "greatest")]
    assert "fewer than 31 % of samples may not show on 8 seeds" in lines[-1]  # .69^8 = .05
    many = {**card.errors, "card": {**card.errors["card"], "seeds": 1000}}
    assert "fewer than 0.3 % of samples" in str(card._replace(errors=many))


def test_a_card_without_medians_is_printed_too(card):
    old = {name: {k: one[k] for k in ("value", "error")} for name, one in card.errors.items()}
    content = json.loads(json.dumps({**content_of(card), "errors": old}))
    lines = str(parse_card(content, "old")).splitlines()
    assert "on seeds that" in lines[1] and lines[-1].startswith("ratio of the last two")
    assert lines[2].strip() == "mean ± standard error"
    plain = card._replace(settings=Settings("heun", "edm", steps=3))
    assert str(plain).startswith("heun, edm schedule, 3 steps, at most 5 evaluations\n")


def test_a_written_card_is_the_returned_one(card, tmp_path):
    card.save(tmp_path / "a.card.json")
    stored = read_card(tmp_path / "a.card.json")
    assert stored == card and stored.key == card.key
    assert f"best published sampler ({card.report['contenders'][0]['solver']}, " in f"{stored}"
    model = clusters()
    noise, _ = erk.noise_and_labels(range(3), model)
    ends = [erk.sample(model, noise, card=one) for one in (card, tmp_path / "a.card.json")]
    assert torch.equal(*ends)


def test_one_solver_with_stepwise_coefficients_on_a_gaussian():
    """Every direction is a multiple of x, so the error goes."""
    card = calibrate(Denoiser(), 10, **SMALL, solver="dpm2", schedule="polynomial",
                     corrections=["stepwise"])  # fmt: skip
    assert card.errors["ratio"]["value"] < 0.01 and card.settings.schedule == "polynomial"
    assert card.settings.erk.directions == USUAL and len(card.settings.erk.weights) == 5


def test_weights_are_a_case_of_it():
    card = calibrate(clusters(), 15, **SMALL | {"seeds": 16}, solver="heun", schedule="edm",
                     corrections=["weights"])  # fmt: skip
    assert card.settings.erk is None and card.settings.w_stiff > 0
    assert card.errors["ratio"]["value"] < 1


def test_without_gain_the_published_sampler_stays():
    card = calibrate(Denoiser(), 4, **SMALL, solver="deis", schedule="time_uniform",
                     corrections=[])  # fmt: skip
    assert card.settings.erk is None and card.errors["ratio"] == {"value": 1.0, "error": 0.0}
    assert card.warning.startswith("no gain: on fresh seeds")


def test_a_card_can_be_for_projected_guidance(tmp_path):
    """APG without momentum is an ODE; the rule is on the card and nothing may contradict it."""
    model, guide = clusters(), Denoiser()
    apg = dict(guidance=1.5, guidance_kind="apg", apg_eta=0.5, apg_threshold=0.3)
    job = SMALL | dict(solver="euler", schedule="polynomial", corrections=["stepwise"])
    card = calibrate(model, 6, **job, guide_model=guide, **apg)
    assert card.errors["ratio"]["value"] < 0.7
    card.save(tmp_path / "a.card.json")
    stored = read_card(tmp_path / "a.card.json")
    assert stored == card and stored.settings.apg_threshold == 0.3
    assert card.key != calibrate(model, 6, **job, guide_model=guide, guidance=1.5).key
    noise, _ = erk.noise_and_labels(range(3), model)
    call = dict(guide_model=guide, card=stored)
    by_card, given = erk.sample(model, noise, **call), erk.sample(model, noise, **call, **apg)
    assert torch.equal(by_card, given)
    with pytest.raises(ValueError, match="sets apg_eta to 0.5"):
        erk.sample(model, noise, **call, apg_eta=0.1)
    with pytest.raises(ValueError, match="sets guidance_kind to apg"):
        erk.sample(model, noise, **call, guidance_kind="cfg")


def test_noise_levels_alone_are_optimised():
    card = calibrate(clusters(), 6, **SMALL, solver="deis", afs=False, corrections=[])
    assert card.settings.erk is None and card.errors["ratio"]["value"] < 1
    assert len(card.settings.schedule) == 7 and card.settings.schedule[0] == 80


class FewLevels(Denoiser):
    """A network that knows sixty noise levels alone, as those of DDPM know a thousand."""

    known = torch.logspace(-2.7, 1.9, 60, dtype=torch.float64)

    def round_sigma(self, sigma):
        nearest = (torch.as_tensor(sigma).double()[..., None] - self.known).abs().argmin(-1)
        return self.known[nearest].to(sigma)

    def __call__(self, x, sigma, labels=None):
        return super().__call__(x, self.round_sigma(sigma), labels)


def test_levels_are_those_that_the_network_knows():
    """Continuous levels are rounded where they are searched, and in the run from the card."""
    model = FewLevels()
    card = calibrate(model, 5, **SMALL, corrections=["stepwise"], solver="deis")
    assert card.errors["ratio"]["value"] < 1
    levels = card.settings.sigmas(model)
    assert torch.equal(levels, model.round_sigma(levels)) and len(levels.unique()) == len(levels)
    noise, labels = erk.noise_and_labels(range(4), model)
    assert erk.sample(model, noise, labels, card=card).isfinite().all()


def test_a_stopped_calibration_continues(tmp_path):
    model, job = clusters(), SMALL | HEUN
    whole = calibrate(model, 7, **job)
    assert calibrate(model, 7, folder=tmp_path, **job) == whole
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(stored) > 4
    spent, model.evaluations = model.evaluations, 0
    assert calibrate(model, 7, folder=tmp_path, **job) == whole
    assert stored == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert model.evaluations < spent / 4  # the errors of the report, and the fit of the choice
    calibrate(model, 7, folder=tmp_path, **job | {"batch": 4})
    assert len([*tmp_path.iterdir()]) > len(stored)


@pytest.mark.parametrize("more", [{}, HEUN, {"corrections": ["weights"], "solver": "heun"}])
def test_the_cost_is_said_first_and_is_a_bound(more, run):
    model = clusters()
    fixed = {name: more[name] for name in more if name != "corrections"}
    corrections = more.get("corrections", ("auto", "stepwise", "end-to-end"))
    problem, plan = plan_of(model, 5, fixed, 8, None, corrections, USUAL, 40, 8, None)
    cost = cost_of(problem, plan)
    assert model.evaluations == 0
    if more:
        calibrate(model, 5, **SMALL, **more)
    spent = model.evaluations or run[1]
    assert 0.3 * cost < spent <= cost + 16  # and 2 evaluations of the first batch
    assert [*map(len, seeds_of(plan))] == [8, 8, 8]


def test_a_denoiser_that_is_not_deterministic_is_refused():
    calls = itertools.count()

    def noisy(x, sigma, labels):
        return gaussian(x, sigma, labels) * (1 + 0.1 * (next(calls) % 2))

    with pytest.raises(ValueError, match="two answers for one input .*dropout"):
        calibrate(Denoiser(noisy), 6, **SMALL)


def test_data_far_from_sigma_data_are_named():
    def wide(x, sigma, labels):
        return x * 9 / (9 + sigma**2)

    with pytest.warns(UserWarning, match=r"standard deviation (2\.|3\.).*far from sigma_data"):
        calibrate(Denoiser(wide), 7, **SMALL, **HEUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nfe": 1, "afs": False},
            "--nfe 1 is too few evaluations: heun at least 3, dpm2 at least",
        ),
        ({"nfe": 0}, "nfe must be an integer from 1 to 1000, not 0"),
        ({"nfe": 5.5}, "nfe must be an integer"),
        ({"seeds": 4}, "seeds must be an integer from 8 to 100000, not 4"),
        ({"directions": ["up"]}, "directions takes one or more of .*'up'"),
        ({"directions": []}, "directions takes at least one"),
        ({"corrections": ["auto", "auto"]}, "corrections takes one or more of"),
        ({"corrections": "auto"}, "corrections takes one or more of"),
        ({"solver": "heum"}, "heum"),
        ({"guidance": 2.0}, "guiding network"),
        (
            {"guidance": 0.5, "guidance_kind": "cfg++", "guide_model": Denoiser()},
            "with guidance_kind 'cfg\\+\\+' .* no converged solution",
        ),
        ({"erk": "auto"}, "calibrate measures the plain solver: leave erk at None"),
        ({"w_stiff": 1.0}, "leave w_stiff at 0.0"),
        ({"w_con": 0.3}, "leave w_con at 0.5"),
        ({"erk_scale": "abs"}, "leave erk_scale at quadratic"),
        ({"S_churn": 5.0}, "leave S_churn at 0.0"),
        ({"pc_snr": 0.1}, "leave pc_snr at 0.0"),
        ({"adaptive_tau": 1.0}, "leave adaptive_tau at None"),
        ({"twin": lambda step, previous: (None, None)}, "leave twin at None"),
        ({"solver": heun}, "knows solvers by name"),
        ({"evaluations": 2}, "evaluations must be an integer from 8 to 100000, not 2"),
        ({"batch": 0}, "batch must be an integer of at least 1, not 0"),
        ({"schedule": [80.0, 0.0]}, "no step between two levels above 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_evaluation(change, message):
    """Findings 6 and 18."""
    model = Denoiser(None)
    with pytest.raises(ValueError, match=message):
        calibrate(model, **{"nfe": 6} | SMALL | change)


def test_a_mistyped_setting_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"calibrate\(\) .* 'rhoo'; did you mean 'rho'"):
        calibrate(Denoiser(), rhoo=7.0)


def test_numbers_and_arrays_of_numpy_give_the_same_card():
    """Finding 4: a KeyError after all the work, and numbers as text in the card."""
    levels = np.array([80.0, 5.0, 0.5, 0.125])
    job = SMALL | {"corrections": ["stepwise"], "solver": "deis"}
    card = calibrate(clusters(), np.int64(4), **job | {"schedule": levels, "seeds": np.int64(8)})
    assert card == calibrate(clusters(), 4, **job | {"schedule": levels.tolist()})
    assert json.dumps(sampler_of(card.settings))
    assert card.settings.steps == 3 and card.settings.schedule == tuple(levels.tolist())


@pytest.mark.parametrize("gain", [float("nan"), 1e38])
def test_a_network_that_overflows_stops_the_work_at_once(gain):
    """Finding 17: LinAlgError, or JSON that cannot be written at the very end."""
    model = erk.from_denoiser(lambda x, sigma: x * gain, sample_shape=(4,))
    with pytest.raises(NonFiniteError, match="at step . .sigma"):
        calibrate(model, 7, **SMALL, **HEUN)


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


class Labelled(torch.nn.Module):
    """A closed form whose data lie elsewhere for each class, and wider without one."""

    def __init__(self, width=0.25):
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor([width]))
        means = torch.randn(3, 4, generator=torch.Generator().manual_seed(5)) / 4
        self.means = torch.nn.Parameter(means)

    def forward(self, x, sigma, labels):
        mean, sigma = labels @ self.means, sigma[:, None]
        wide = self.width + (labels.sum(1, keepdim=True) == 0)
        return mean + (x - mean) * wide / (wide + sigma**2)


def labelled(width=0.25):
    network = Labelled(width).requires_grad_(False)
    return erk.from_denoiser(network, 0.002, 80.0, sample_shape=(4,), label_dim=3)


@pytest.mark.parametrize("corrections", [["stepwise"], ["weights"]])
def test_the_guide_can_have_labels_of_its_own(corrections):
    """CFG within one network: the errors of the card are those of `erk.sample` with it."""
    model, nothing, fresh = labelled(), torch.zeros(1, 3), range(900_016, 900_024)
    guide = dict(guide_model=model, guide_labels=nothing)
    card = calibrate(model, 7, solver="heun", schedule="polynomial", corrections=corrections,
                     guidance=2.0, **guide, **SMALL)  # fmt: skip
    noise, labels = erk.noise_and_labels(fresh, model)
    exact = converged(card.settings, model, noise, labels, model, 40, nothing.expand(8, 3))
    wrong = converged(card.settings, model, noise, labels, labelled(1.25), 40)
    x = erk.sample(model, noise, labels, card=card, **guide)
    error, other = ((x - end).norm(dim=1).mean().item() for end in (exact, wrong))
    assert error == pytest.approx(card.errors["card"]["value"], rel=1e-3)
    assert abs(other - error) > 0.01 * error  # the labels of the sample make another ODE


def test_labels_of_the_guide_are_one_row_and_other_than_those_of_the_samples():
    model = labelled()
    for wrong in (torch.zeros(8, 3), torch.zeros(()), [0, 0, 0]):
        with pytest.raises(ValueError, match="guide_labels must be one row"):
            calibrate(model, 5, guide_model=model, guide_labels=wrong, guidance=2.0, **SMALL)
    with pytest.raises(ValueError, match="the guide is the network itself with the same labels"):
        calibrate(model, 5, guide_model=model, guidance=2.0, **SMALL)


def test_kept_results_are_for_these_labels_of_the_guide():
    model = labelled()
    model.sha256 = "f" * 64  # as if it were from a file
    keys = [problem_for(model, Settings(guidance=2.0, steps=4), model, guide_labels=row).key([0])
            for row in (torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1, 3))]  # fmt: skip
    assert keys[0] == keys[2] != keys[1]
