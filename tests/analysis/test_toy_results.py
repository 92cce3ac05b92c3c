"""The toy's numbers against the published ones and against an independent rebuild of them."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from erk.analysis import toy, toy_results
from erk.analysis.toy_networks import load_network
from erk.analysis.toy_results import QUARTILES, STIFF
from erk.method.point import Point
from erk.method.sampler import steps
from erk.method.schedule import polynomial
from erk.method.solvers import heun
from scripts.paper import toy as script

# Medians by quartile of stiffness and changes of the mean distance in %, rebuilt independently
# with 4096 trajectories and 100 sub-steps; ours differ by their noise.
MEDIANS = {
    "LTE": (0.592, 0.761, 0.747, 0.990),
    "ERK solution difference": (0.584, 0.727, 0.606, 0.990),
    "ERK drift difference": (0.583, 0.784, 0.947, 1.000),
}
CHANGES = {
    "w_stiff 0.408, w_con 0.5": (-46, -57, -59),
    "Gaussian rule": (-38, -57, -62),
}
HEUN = (0.04783, 0.00981, 0.00222)  # its mean distance at 8, 16, 32 steps


@pytest.fixture(scope="module")
def tree():
    return toy.tree("A")


@pytest.fixture(scope="module")
def run(tree):
    """256 trajectories with 10 sub-steps, no networks."""
    return toy_results.exact_run(tree, toy_results.noisy_states(tree, 256, 5.0, 1), {}, 10)


def medians(run, kind="|cos|"):
    rows = [row for row in toy_results.figure2(run) if row["median"] == kind]
    return {row["quantity"]: [row[q] for q in QUARTILES] for row in rows}


def test_levels_are_those_of_the_edm_schedule():
    levels = toy_results.levels()
    assert len(levels) == 32 and levels[0] == 5 and levels[-1] == 0.002
    expected = [0.010398, 0.0071309, 0.0047864, 0.0031363, 0.002]
    assert levels[27:].tolist() == pytest.approx(expected, rel=5e-5)


def test_table1_at_the_marked_centre(tree):
    """Not the published numbers (norms 4.4 and 5.0 times as large), but their kind."""
    rows = toy_results.table1(tree)
    assert [row["here"] for row in rows] == pytest.approx(
        [3.18e-4, 6.74e-7, 2.06e-3, 1.095e-5], rel=2e-3
    )
    for dominant, subdominant in (rows[:2], rows[2:]):
        assert (dominant["axis"], subdominant["axis"]) == ("dominant", "subdominant")
        assert dominant["here"] > 100 * subdominant["here"]
        assert dominant["published"] > 6 * subdominant["published"]
        ratio = math.hypot(dominant["here"], subdominant["here"]) / math.hypot(
            dominant["published"], subdominant["published"]
        )
        assert ratio == pytest.approx(4.4 if dominant["vector"] == "LTE" else 5.05, abs=0.05)


def test_table1_comes_out_on_a_branch(tree):
    """A generic point has all four published numbers within 2 %: the method is the paper's."""
    for row in toy_results.table1(tree, toy_results.BRANCH):
        assert row["here / published"] == pytest.approx(1, abs=0.02), row


def test_axes_are_orthonormal_and_towards_the_drift(tree):
    x = torch.tensor([STIFF, (0.048, 0.085)], dtype=torch.float64)
    sigma = toy_results.levels()[28]
    basis = toy_results.axes(tree, x, sigma)
    eye = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    assert torch.allclose(basis @ basis.mT, eye, atol=1e-12)
    assert torch.equal(basis[:, 0], toy.dominant(tree, x, sigma).v)
    assert (basis @ toy.drift(tree)(x, sigma).f[..., None] >= 0).all()
    assert basis[0, 0].tolist() == pytest.approx([0.852, -0.524], abs=1e-3)


def test_figure1_drift_splits_in_the_gap_alone(tree):
    result = toy_results.figure1(tree, 2000)
    assert result.x.shape == (2000, 2) and result.rho.shape == (2000,)
    assert torch.quantile(result.rho, 0.99).item() == pytest.approx(103, abs=6)  # measured 103.4
    swing = {name: (line.drift.amax(0) - line.drift.amin(0)) for name, line in result.lines.items()}
    # measured, dominant: AB 0.81, CD 0.00, EF 16.4, GH 2.4
    assert swing["EF"][0] > 15 and swing["AB"][0] < 1 and swing["CD"].max() < 0.03
    assert swing["GH"][0] < swing["EF"][0] / 5
    dominant = result.lines["EF"].drift[:, 0]
    assert dominant[0] > 5 and dominant[-1] < -5  # towards two branches
    for line in result.lines.values():
        assert line.places[0] == -line.places[-1] and line.direction.norm().item() == pytest.approx(
            1
        )


def test_exact_run_ends_where_many_heun_steps_end(tree, run):
    fine = polynomial(1500, 0.002, 5.0, 7.0)
    *_, (x, _) = steps(toy.drift(tree), run.start[:16], fine, heun)
    assert (run.end[:16] - x).abs().max() < 2e-4  # measured 7e-5
    assert run.rho.shape == (30, 256) == run.cosines["LTE"].shape


def test_alignment_rises_with_stiffness(run):
    """Within the noise of 256 trajectories: at most 0.047 from the rebuilt medians."""
    result = medians(run)
    for name, expected in MEDIANS.items():
        assert result[name] == pytest.approx(expected, abs=0.06), name
    assert result["LTE"][3] > 0.97 and result["ERK drift difference"][3] > 0.999
    signed = medians(run, "cos")
    assert signed["LTE"][3] < -0.97 and signed["ERK solution difference"][3] > 0.97


def test_within_one_step_alignment_hardly_depends_on_stiffness(run):
    """So the trend over all states is largely one of sigma."""
    result = medians(run, "|cos|, within a step")["LTE"]
    assert max(result) - min(result) < 0.15  # measured 0.08; over all states 0.38


def test_the_pair_tells_the_stiffness(run):
    """Rebuilt: correlation 0.969, median ratio 1.00, 0.97, 0.77, 0.96."""
    result = toy_results.estimates(run)
    assert result["correlation of logs"] == pytest.approx(0.967, abs=0.01)
    ratios = [result["median ratio"][q] for q in QUARTILES]
    assert ratios == pytest.approx([1.00, 0.97, 0.77, 0.96], abs=0.04)
    assert max(ratios) <= 1


def test_guides_lower_the_local_error_where_it_is_stiff(run):
    rows = {row["guide"]: row for row in toy_results.guided_errors(run)}
    assert all(rows["none"][q] == 1 for q in QUARTILES)
    paper, rule = rows["w_stiff 0.408, w_con 0.5"], rows["Gaussian rule"]
    assert (
        paper["Q75-100"] < 0.9 and paper["Q0-25"] > 2
    )  # measured 0.75, 2.7: Eq. 9 drops df/dsigma
    assert all(rule[q] < 1 for q in QUARTILES)  # measured 0.29, 0.43, 0.97, 0.60


def test_erk_guid_brings_samples_nearer(tree, run):
    rows = toy_results.helps(tree, run.start, run.end, (8,))
    change = {row["guide"]: row["change in %"][0] for row in rows}
    assert rows[0]["guide"] == "none" and change["none"] == 0
    assert rows[0]["distance"][0] == pytest.approx(HEUN[0], abs=0.006)
    for name, expected in CHANGES.items():
        assert change[name] == pytest.approx(expected[0], abs=6)
    assert change["w_stiff 1, w_con 0.5"] > 100 and change["w_stiff 1.5, w_con 0"] > 600
    nearer = {row["guide"] for row in rows if row["sliced W1"] < rows[0]["sliced W1"]}
    assert nearer == {row["guide"] for row in rows if row["change in %"][0] < 0}


@pytest.mark.parametrize("level", [4, 2, 1, 0.5, 0.25])
def test_gaussian_rule_on_gaussian_data(level):
    """It removes 84 to 98 % of Heun's local error there; the first step has no pair."""

    def drift(x, sigma):
        return Point(x, sigma / (1 + sigma**2) * x, sigma)

    def exact(sigma):
        return torch.sqrt(1 + sigma**2).reshape(1, 1)

    before, now, then = (torch.tensor(level * 1.1**k, dtype=torch.float64) for k in (1, 0, -1))
    first = heun(drift, exact(before), before, now)
    assert torch.equal(toy_results.gaussian_rule(first), first.x)
    step = heun(drift, exact(now), now, then, first.memory)
    plain, guided = exact(then) - step.x, exact(then) - toy_results.gaussian_rule(step)
    assert guided.abs() < 0.2 * plain.abs()


def test_by_quartile():
    rho, values = torch.arange(8.0), torch.tensor([0, 1, 10, 11, 20, 21, 30, 31.0])
    result = toy_results.by_quartile(values.reshape(2, 4), rho.reshape(2, 4), torch.mean)
    assert list(result.values()) == [0.5, 10.5, 20.5, 30.5]


def test_sliced_w1_of_a_shift():
    """A shift by d is |<d, direction>| on each slice, on average 2 |d| / pi."""
    a = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert toy_results.sliced_w1(a, a.flip(0)) == 0
    assert toy_results.sliced_w1(a, a + shift) == pytest.approx(2 * 0.5 / math.pi, rel=1e-3)


def test_guidance_of_the_networks(tree):
    """The difference of two denoisers for class A, whatever the size of guidance."""
    main, weak = load_network("toy-main"), load_network("toy-weak")
    x, sigma = toy_results.noisy_states(tree, 5, 0.1, 0), torch.tensor(0.1, dtype=torch.float64)
    labels = torch.eye(2)[[0] * 5]
    expected = main(x.float(), 0.1, labels) - weak(x.float(), 0.1, labels)
    result = toy_results.guidance(Point(x, x, sigma), main, weak)
    assert torch.allclose(result.float(), expected, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    command = ["--fast", "--samples", "16", "--results", str(path)]
    done = CliRunner().invoke(script.main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return path


@pytest.mark.parametrize("name", script.PARTS)
def test_the_script_writes_numbers_with_their_origin(folder, name):
    result = json.loads((folder / f"{name}.json").read_text())
    assert result["settings"]["samples"] == 16 and result["settings"]["substeps"] == 20
    assert result["made_by"]["versions"]["torch"] == torch.__version__
    assert result["caption"] == script.CAPTIONS[name] and result["rows"]
    assert len((folder / f"{name}.csv").read_text().splitlines()) == len(result["rows"]) + 1


@pytest.mark.parametrize("name", ["figure1", "figure2", "helps"])
def test_the_script_draws_on_a_light_background(folder, name):
    with Image.open(folder / f"{name}.png") as image:
        assert 1150 < image.width < 1250 and image.height > 500  # twice the width on a page
        corner = image.convert("RGB").getpixel((0, 0))
        assert corner == (255, 255, 255)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100


def test_the_script_writes_standard_errors(folder):
    row = json.loads((folder / "helps.json").read_text())["rows"][1]
    assert 0 < row["distance_se"] < row["distance"] and row["change in %_se"] > 0


def test_the_script_writes_only_what_was_asked_for(tmp_path):
    done = CliRunner().invoke(script.main, ["--what", "table1", "--results", str(tmp_path)])
    assert done.exit_code == 0 and "dominant" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table1.csv", "table1.json"]
    result = json.loads((tmp_path / "table1.json").read_text())
    assert [row["from"] for row in result["rows"]] == ["(0.54, 1.04)"] * 4 + [
        "(1.00335, 0.32295)"
    ] * 4
    published = [row["published"] for row in result["rows"]]
    assert published == [7.22e-05, 5.78e-06, 4.03e-04, 6.18e-05] * 2


def test_bad_options_are_refused(tmp_path):
    for options in (["--samples", "3"], ["--what", "table9"], ["--seed", "-1"]):
        done = CliRunner().invoke(script.main, [*options, "--results", str(tmp_path)])
        assert done.exit_code == 2 and "Error" in done.output


@pytest.mark.slow
def test_at_full_fidelity(tree):
    """4096 trajectories, 100 sub-steps; measured 0.025, 4 % and 7 points off."""
    run = toy_results.exact_run(tree, toy_results.noisy_states(tree, 4096, 5.0, 0), {})
    result = medians(run)
    for name, expected in MEDIANS.items():
        assert result[name] == pytest.approx(expected, abs=0.03), name
    rows = toy_results.helps(tree, run.start, run.end)
    plain = [row["distance"][0] for row in rows if row["guide"] == "none"]
    assert plain == pytest.approx(HEUN, rel=0.06)
    for name, expected in CHANGES.items():
        change = [row["change in %"][0] for row in rows if row["guide"] == name]
        assert change == pytest.approx(expected, abs=9), name
