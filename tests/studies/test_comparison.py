"""The comparison of solvers at a tiny size, as a user would call it."""

import csv
import json
from contextlib import contextmanager

import pytest
import torch
from click.testing import CliRunner

from erk.calibration import end_to_end
from erk.calibration.card import parse_card
from erk.method.corrections import LONGEST, Correction, length
from erk.method.sampler import integrate, solve
from scripts.paper.config import ROOT
from scripts.studies import comparison, comparison_cells, comparison_page, comparison_plan
from scripts.studies.comparison_cells import Cells
from scripts.studies.comparison_plan import (
    ALL,
    BEST,
    CORRECTIONS,
    DATA,
    METHODS,
    MORE,
    PAPER,
    cells_of,
    data_of,
)
from scripts.studies.data import load

TINY = ("--num", "20", "--data", "spectra", "--nfe", "4")
SOLVERS = ("heun", "deis", "any")
CALIBRATED = ("levels", "card", "end to end")


def call(*arguments):
    return CliRunner().invoke(comparison.main, [str(a) for a in arguments])


@contextmanager
def small():
    """All modes of DEIS, the uncalibrated ones of Heun, the card of --nfe 4: tiny calibrations."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (comparison_cells, comparison_plan):
            patch.setattr(module, "SEEDS", dict.fromkeys(comparison_plan.SEEDS, 8))
            patch.setattr(module, "EVALUATIONS", 24)
        patch.setattr(end_to_end, "ROUNDS", 1)
        patch.setattr(comparison_plan, "NFES", {})
        only = dict.fromkeys(CALIBRATED, ("deis",)) | {MORE: ()}
        patch.setattr(comparison_plan, "ONLY", comparison_plan.ONLY | only)
        known = [one for one in METHODS if (one.solver or "any") in SOLVERS]
        patch.setattr(comparison_page, "METHODS", known)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    with small():
        done = call(*TINY, *(f"--solver={name}" for name in SOLVERS), "--results", folder)
    assert done.exit_code == 0, done.output
    return folder


def page_of(folder):
    return json.loads((folder / "comparison.json").read_text("utf-8"))


def test_every_mode_is_computed_within_the_evaluations(folder):
    rows = page_of(folder)["rows"]
    modes = {name: [r["mode"] for r in rows if (r["method"], r["nfe"]) == (name, 4)]
             for name in ("Heun", "DEIS tAB3", "any solver")}  # fmt: skip
    assert modes["Heun"] == ["plain", PAPER, "auto"]
    assert modes["DEIS tAB3"] == ["plain", *CALIBRATED] and modes["any solver"] == [BEST]
    for row in rows:  # Heun has room for two steps in 3 evaluations as in 4: the same cells
        assert row["used"] <= row["nfe"] <= 4 and row["samples"] == 20
        assert row["seeds"] == "600000-600019" and row["error"] > 0 < row["quality_se"]
    error = {row["sampler"]: row["error"] for row in rows}
    assert error["DEIS tAB3, card"] < error["DEIS tAB3, plain"] > error[BEST]


def test_a_card_on_the_page_gives_the_error_of_its_row(folder):
    row = page_of(folder)["finished"]["spectra, DEIS tAB3, card, NFE 4"]
    data, card = load("spectra"), parse_card(row["card"], "comparison.json")
    noise, _ = data.draw(range(600_000, 600_020))
    x = solve(card.settings.drift(data.model, None, None), noise, card.settings)
    with small():
        [cell] = cells_of(["spectra"], ["any"], [4], 20)
        exact = comparison_cells.converged(cell, False, folder / "rows")
    assert (x - exact).norm(dim=1).mean().item() == pytest.approx(row["values"]["error"], rel=1e-4)


def test_every_number_of_the_page_comes_from_a_cell(folder):
    """Tables, csv and verdict: values and jackknife errors of `finished`, which has all cells."""
    page = page_of(folder)
    rows, finished = page["rows"], page["finished"]
    for row in rows:
        one = finished[f"{row['data']}, {row['method']}, {row['mode']}, NFE {row['nfe']}"]
        for name, value in one["values"].items():
            left_out = torch.tensor(one["replicates"][name], dtype=torch.float64)
            error = (9 / 10 * (left_out - left_out.mean()).square().sum()).sqrt().item()
            assert (row[name], row[f"{name}_se"]) == (value, pytest.approx(error))
    values = {(r["method"], r["mode"]): [r["error"], r["error_se"]]
              for r in rows if r["nfe"] == 4}  # fmt: skip
    grid = next(t for t in page["tables"] if t["caption"].startswith("spectra. Mean distance"))
    assert {(r["solver"], r["mode"]): r["NFE 4"] for r in grid["rows"]} == values
    least = min(values, key=lambda key: values[key][0])
    bold = {column: grid["rows"][i] for i, column in grid["bold"]}
    assert (bold["NFE 4"]["solver"], bold["NFE 4"]["mode"]) == least
    with open(folder / "comparison.csv") as file:
        assert [float(r["error"]) for r in csv.DictReader(file)] == [r["error"] for r in rows]


def test_the_verdict_is_against_the_best_rival_that_is_no_card(folder):
    page = page_of(folder)
    [line] = next(t for t in page["tables"] if "best rival" in t["caption"])["rows"]
    rivals = [r for r in page["rows"] if r["mode"] in ("plain", PAPER, "auto", "levels")]
    best, card = min(rivals, key=lambda r: r["error"]), page["rows"][-1]
    assert line["best rival in distance"] == best["sampler"]
    assert line["card - rival, distance"][0] == pytest.approx(card["error"] - best["error"])
    with small():
        cells = {c: r for c in cells_of(["spectra"], [], [4], 20) if (r := Cells(folder)[c])}
    assert [*comparison_page.verdict(cells, BEST)] == []  # of seven solvers five are not measured


def test_the_use_of_a_situation_is_what_is_nearest_on_average(folder):
    page = page_of(folder)
    lines = {line["situation"]: line["use"] for line in page["tables"][0]["rows"]}
    error = {row["sampler"]: row["error"] for row in page["rows"]}
    plain = {name: error[f"Heun, {name}"] for name in ("plain", PAPER, "auto")}
    assert lines["Heun or DPM-Solver-2, no calibration"] == min(plain, key=plain.get)
    assert lines["any solver, calibrated, no model guidance"] == min(error, key=error.get)


def replicates(value, spread):
    return {"values": {"error": value, "quality": value},
            "replicates": dict.fromkeys(("error", "quality"), [value + spread * (-1) ** i
                                                               for i in range(10)])}  # fmt: skip


def test_a_difference_is_said_beyond_the_noise_of_all_comparisons():
    """Ten groups: one comparison needs 2.26 standard errors, two of a table 2.69."""
    changes = [comparison_page.difference(replicates(value, 1 / 9), replicates(1.0, 0.0), "error")
             for value in (1.0 - 2.8 / 3, 1.0 - 2.5 / 3, 1.0 + 2.8 / 3)]  # fmt: skip
    assert changes[0].error == pytest.approx(1 / 3, rel=1e-6) and changes[0].value < 0
    assert comparison_page.beyond(changes, -1, 1) == [0, 1]
    assert comparison_page.beyond(changes, -1, 2) == [0]
    said = comparison_page._said("distance", [3], changes[:1])
    assert said == "Its distance: lower beyond noise at NFE 3."
    assert "undecided at NFE 3" in comparison_page._said("FD", [3], changes[1:2])


def test_finished_cells_are_kept_and_missing_ones_come_out_alike(folder, tmp_path):
    before = page_of(folder)["finished"]
    (tmp_path / "comparison.json").write_text(json.dumps({"finished": before}))
    with small():
        cells = cells_of(["spectra"], SOLVERS, [4], 20)
        assert len(cells) == 8 and Cells(folder).pending(cells) == []
        assert Cells(tmp_path).pending(cells) == []  # of the page alone, as in a clone
        cell = next(cell for cell in cells if cell.mode == "levels")
        Cells(tmp_path / "other").compute([cell])
        assert Cells(tmp_path / "other")[cell]["values"] == before[cell.name]["values"]
    shared = [path for path in (folder / "rows").iterdir() if path.suffix == ".safetensors"]
    assert len(shared) == 1  # the converged solutions of all cells


def test_the_plan_is_that_of_the_issue():
    cells = cells_of()
    assert {cell.nfe for cell in cells if cell.mode == BEST} == {3, 4, 5, 6, 8, 10, 12, 16, 20}
    assert {c.mode for c in cells if c.data == "mnist-autog"} == {
        "plain", "auto", "levels", "card", BEST,
    }  # fmt: skip
    guidance = {c.data: c.fixed["guidance"] for c in cells}
    assert (guidance["mnist-cfg-1.5"], guidance["mnist-cfg-3"], guidance["mnist"]) == (1.5, 3, 1)
    more = [cell for cell in cells if cell.mode == MORE]
    assert {cell.data for cell in more} == {"spectra"} and {cell.key[7][3] for cell in more} == {
        128
    }
    first = cells[:45]
    assert {c.method.name for c in first} <= {"Heun", "any solver"}  # the README's image first
    assert [CORRECTIONS[mode] for mode in ("levels", "card")] == [(), ("auto", "stepwise")]
    names = {cell.method.name for cell in cells if cell.mode == "plain" and cell.nfe in ALL}
    assert names == {method.name for method in METHODS if method.solver}


def test_spectra_has_the_denoiser_of_its_samples():
    """D(x; sigma) is the mean of the samples weighted with their likelihood; spread: sigma_data."""
    data = load("spectra")
    assert data.real.std().item() == pytest.approx(0.5, rel=0.03)
    x, sigma = (
        data.real[:3] + 2.0 * torch.randn(3, 48, generator=torch.Generator().manual_seed(0)),
        2.0,
    )
    weights = (-(x[:, None] - data.real).square().sum(2) / (2 * sigma**2)).softmax(1)
    actual, expected = data.model(x, torch.tensor(sigma)), weights @ data.real
    assert (actual - expected).norm(dim=1).max() < 0.4 * expected.norm(dim=1).min()
    near = data.model(data.real[:5], torch.tensor(1e-3))
    assert torch.allclose(near, data.real[:5], atol=1e-2)


def test_dry_run_and_bad_input(tmp_path):
    done = call(*TINY, "--solver", "deis", "--results", tmp_path, "--dry-run")
    assert done.exit_code == 0 and "spectra: 2 cells are to be computed, about" in done.output
    assert "evaluations, 0.0 CPU hours" in done.output
    done = call("--solver", "hein", "--results", tmp_path)
    assert done.exit_code == 2 and "--solver hein is none of heun, dpm2" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_beyond_says_what_the_verdicts_show():
    """docs/beyond.md, Comparison: the three verdicts in words, and the ranges of MNIST."""
    page = json.loads((ROOT / "results" / "comparison.json").read_text("utf-8"))
    text = " ".join((ROOT / "docs" / "beyond.md").read_text("utf-8").split())
    verdicts = [t for t in page["tables"] if "best rival in distance" in t["columns"]]
    captions = [t["caption"] for t in verdicts]
    said = (
        ("mnist.", "NFE 3, 4, 5, 6, 8, 10, 12, 16, 20. Its FD: lower beyond noise at NFE 3, "
         "higher beyond noise at NFE 5, 6, 8, undecided"),
        ("spectra.", "distance: lower beyond noise at NFE 3, 4, 5, 6, 20, undecided at NFE 8, "),
        ("spectra.", "distance: lower beyond noise at NFE 3, 4, 5, 6, 8, 12, undecided at NFE"),
        ("mnist-cfg-1.5.", "distance: lower beyond noise at NFE 5, 8, 12, 20. Its FD: lower beyond "
         "noise at NFE 5, higher beyond noise at NFE 20, undecided at NFE 8, 12."),
        ("mnist-cfg-3.", "distance: lower beyond noise at NFE 5, 8, 12, 20. Its FD: lower beyond "
         "noise at NFE 5, higher beyond noise at NFE 8, 12, 20."),
        ("mnist-autog.", "distance: lower beyond noise at NFE 5, 8, 12, 20. Its FD: undecided at"),
    )  # fmt: skip
    for caption, (start, words) in zip(captions, said, strict=True):
        assert caption.startswith(start) and words in caption
    mnist, spectra, more, *guided = [t["rows"] for t in verdicts]
    for rows, words, rivals in (
        (
            mnist,
            "distance is {} to {} of that of the best rival",
            {"UniPC, levels", "DEIS tAB3, levels", "iPNDM, levels"},
        ),
        (
            [row for row in sum(guided, []) if row["NFE"] == 8],
            "At 8 the card's distance is {} to {} of that of the best rival, UniPC or DPM++(2M)",
            {"UniPC, levels", "DPM++(2M), levels"},
        ),
        (
            [row for row in sum(guided, []) if row["NFE"] != 8],
            "{} to {} of that of DEIS on its published levels",
            {"DEIS tAB3, plain"},
        ),
    ):
        ratios = [row["card's distance"][0] / row["its distance"][0] for row in rows]
        assert words.format(f"{min(ratios):.2f}", f"{max(ratios):.2f}") in text
        assert {row["best rival in distance"] for row in rows} == rivals
    assert all(row["card - rival, distance"][0] < 0 for row in more)
    used = {row["situation"].rpartition(", ")[2]: row for row in page["tables"][0]["rows"]}
    line = used["with model guidance"]
    assert line["use"] == BEST and "in 3 of 3 cases; 0.77 to 0.93 of the best" in line["because"]
    assert "at 0.77 to 0.93 of the nearest one's distance" in text
    at_10 = next(row for row in spectra if row["NFE"] == 10)
    assert at_10["best rival in distance"] == "UniPC, levels"
    ratio = at_10["card's distance"][0] / at_10["its distance"][0]
    assert f"at 10 its mean distance is {ratio:.1f} times that of UniPC" in text
    ends = {r["data"]: r for r in page["rows"] if r["method"] == "converged"}
    for data, words in (("mnist", "an FD of {}"), ("mnist-cfg-1.5", "with CFG 1.5 of {}"),
                        ("mnist-cfg-3", "with CFG 3 of {}"),
                        ("mnist-autog", "with Autoguidance of {}")):  # fmt: skip
        value, error = ends[data]["quality"], ends[data]["quality_se"]
        assert words.format(f"{value:.3g} ± {error:.2g}") in text
        cards = [r["quality"] for r in page["rows"] if r["data"] == data and r["mode"] == BEST]
        assert max(abs(card - value) for card in cards) < 0.7
    behind = {"mnist": (5, 6, 8), "mnist-cfg-1.5": (20,), "mnist-cfg-3": (8, 12, 20)}
    for table, caption in zip(verdicts, captions, strict=True):
        data = caption.partition(". ")[0]
        for row in table["rows"]:
            if row["NFE"] in behind.get(data, ()):
                assert row["its FD"][0] < ends[data]["quality"]
    error = {(r["data"], r["sampler"], r["nfe"]): r["error"] for r in page["rows"]}
    for data, solver, nfe in (("mnist", "DEIS tAB3", 5), ("mnist", "DPM++(3M)", 8),
                              ("spectra", "iPNDM", 5), ("spectra", "DEIS tAB3", 8)):  # fmt: skip
        alone = error[data, f"{solver}, end to end", nfe]
        others = [v for (d, name, n), v in error.items()
                  if (d, n) == (data, nfe) and name.endswith("end to end")]  # fmt: skip
        assert alone == min(others) <= error[data, BEST, nfe]
        assert f"{alone:.3g}" in text and f"{error[data, BEST, nfe]:.3g}" in text


def test_the_committed_page_is_that_of_its_cells():
    """results/comparison.*: no row without its cell, and figures of all its data."""
    page = page_of(ROOT / "results")
    names = {f"{r['data']}, {r['method']}, {r['mode']}, NFE {r['nfe']}" for r in page["rows"]}
    assert names == page["finished"].keys()
    known, cells = Cells(ROOT / "results"), cells_of()
    rows = [comparison_page.row_of(c, row) for c in cells if (row := known[c]) is not None]
    assert rows == page["rows"]
    for name in {row["data"] for row in page["rows"]}:
        assert (ROOT / f"results/comparison-{name}.png").is_file()
        assert f"comparison-{name}.png" in page["files"]


@pytest.mark.slow
@torch.inference_mode()
def test_no_card_of_mnist_reaches_the_limit_of_corrections():
    """Cells that were computed before the limit: with it they are the same."""
    known, seen = Cells(ROOT / "results"), 0
    for cell in cells_of([name for name in DATA if name != "spectra"]):
        row = known[cell] if cell.data == "mnist" or cell.mode == BEST else None
        settings = parse_card(row["card"], cell.name).settings if row and row["card"] else None
        if settings is None or not isinstance(settings.erk, Correction):
            continue
        data, seen = data_of(cell.data), seen + 1
        noise, labels = data.draw(cell.seeds[:20])
        drift = settings.drift(data.model, labels, data.guide_model)
        for state in integrate(drift, noise, settings):
            assert not (length(state.step, state.x) > 0.9 * LONGEST).any(), cell.name
    assert seen > 40
