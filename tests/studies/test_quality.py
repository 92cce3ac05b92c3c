"""The study of solver error against quality: its rows, its control, and its tables."""

import json
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from erk.analysis.toy_results import OPTIMUM
from erk.method.guidance import erk_guid, memoryless
from erk.method.point import Point
from erk.method.sampler import steps
from erk.method.schedule import polynomial
from erk.method.solvers import heun
from scripts.paper.config import ROOT, Experiment, Request, load_config
from scripts.paper.plan import options_of_row
from scripts.paper.rows import paired, planned_rows
from scripts.paper.scales import at_scale
from scripts.studies.quality_page import distance_ratio, fd_change, figure, text, ways_of
from scripts.studies.quality_plan import (
    NETWORKS,
    NUM,
    SEEDS_OF_TRAINING,
    SHARPENED,
    W_CON,
    WEIGHTS,
    experiment,
    plain_name,
    restricted,
    sharp_name,
    sharpening,
    weight_name,
)

PAGE = ROOT / "docs" / "what-erk-guid-does.md"
SHARP = "sharpening of w_stiff {} alone"
RATE = 0.8  # f = RATE x: the exact solution is a power of e


def deviation(sigmas, w_stiff):
    """ln of the guided Heun solution of x' = RATE x over the exact one."""
    guidance = memoryless(partial(erk_guid, w_stiff=w_stiff, w_con=0.0))

    def drift(x, sigma):
        return Point(x, RATE * x, sigma)

    x = torch.ones(1, 1, dtype=torch.float64)
    *_, (end, _) = steps(drift, x, sigmas, heun, guidance)
    return math.log(end.item()) - RATE * (sigmas[-1] - sigmas[0]).item()


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("w_stiff", [1.0, 2.0])
def test_the_control_sharpens_by_what_exceeds_heuns_error(parts, w_stiff):
    coarse = torch.linspace(2.0, 1.0, 33, dtype=torch.float64)
    fine = torch.linspace(2.0, 1.0, 32 * parts + 1, dtype=torch.float64)
    expected = deviation(coarse, w_stiff)
    assert deviation(fine, sharpening(w_stiff, parts)) == pytest.approx(expected, rel=0.05)
    assert abs(deviation(fine, 0.0)) < abs(deviation(coarse, 0.0)) / (0.95 * parts**2)
    assert sharpening(OPTIMUM, parts) == pytest.approx(OPTIMUM)


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_are_compared_with_heun_of_the_same_seeds(network):
    one = experiment(network)
    planned = {each.row.name: each for each in planned_rows(*one)}
    for n in W_CON:
        missing = {*ways_of(n).values()} - {*planned}
        assert n not in SHARPENED or not missing, missing
        assert all("sharpening" in name for name in missing)
    for each in planned.values():
        base = planned.get(each.row.against, each)
        assert base.options["seeds"] == each.options["seeds"]
        assert each.options["seeds"] == f"100000-{100000 + NUM - 1}"
    assert planned[weight_name(8, 1.0)].options["w_con"] == 0.1


def test_rows_of_digits_are_those_of_table_2():
    request = Request(scale="digits-early")
    table = Experiment(at_scale(load_config("table2"), request), request)
    theirs = [options_of_row(table.config, row, request) for row in table.config.rows]
    one = experiment("digits-early")
    ours = {row.name: options_of_row(one.config, row, request) for row in one.config.rows}
    for name in (plain_name(32), weight_name(32, 2.0), "16 steps, auto", "32 steps, converged",
                 "32 steps, halved"):  # fmt: skip
        assert ours[name] in theirs


def test_only_the_rows_of_some_steps_are_measured():
    one = restricted(experiment("digits"), [6])
    names = [one.config.rows[int(i)].name for i in one.request.rows.split(",")]
    assert all(n.startswith("6 steps") for n in names)
    assert len(names) == len(ways_of(6)) - 2 + 1  # none of sharpening; plain


def row(fd, distance, seeds="0-9"):
    columns = {"fd": fd, "precision": 0.5, "recall": 0.5, "is": 2.0, "is_std": None,
               "accuracy": 0.8, "distance": distance}  # fmt: skip
    replicates = {name: None if v is None else [v, v * 1.1] for name, v in columns.items()}
    return {"protocol": "digits", "n": 10, "seeds": seeds, "replicates": replicates, "fd_se": 1.0,
            "distance_se": 0.1, **columns}  # fmt: skip


def test_changes_are_those_of_paired_seeds():
    value, error = fd_change(row(5.0, 1.0), row(10.0, 4.0))
    assert value == -50 and error == pytest.approx(100 * 0.25 / 10)  # replicates -5 and -5.5
    assert distance_ratio(row(5.0, 1.0), row(10.0, 4.0)) == (0.25, pytest.approx(0, abs=1e-12))


def test_tables_and_figure_hold_what_is_measured():
    some = {plain_name(8): row(10.0, 4.0), weight_name(8, 2.0): row(5.0, 8.0),
            "8 steps, converged": row(9.0, 0.0, seeds="0-4")}  # fmt: skip
    measured = dict.fromkeys(NETWORKS, {}) | {NETWORKS[0]: some, NETWORKS[1]: some}
    lines = text(measured).splitlines()
    cells = "| w_stiff 2 | – | – | -50 | – | – | – | 2 | – |"
    assert sum(line.startswith(cells) for line in lines) == 1
    cells = "| w_stiff 2 | **-50.0 ± 2.5** | **-50.0 ± 2.5** | – | 2 | 0 | 0 | 0 |"
    assert sum(line.startswith(cells) for line in lines) == 1
    assert not any(line.startswith("| converged") for line in lines)  # other seeds
    assert "2 changes of FD" in text(measured)
    assert figure(measured).startswith(b"\x89PNG")


def test_steps_are_parts_of_the_coarse_schedule():
    for count, parts in SHARPENED.items():
        coarse = polynomial(count - 1, 0.002, 80.0, 7.0)
        fine = polynomial(parts * (count - 1), 0.002, 80.0, 7.0)
        assert torch.allclose(fine[::parts], coarse)
        assert all(a > b for a, b in pairwise(fine))


def read(name):
    return (ROOT / "results" / name).read_text("utf-8")


def cells(head):
    """The rows of a table of the record: {row: [text of each column]}; `head` stands above it."""
    below = read("quality.md").partition(f"\n{head}")[2]
    table = below.partition("\n| --- ")[2].partition("\n\n")[0]
    rows = [line.replace("**", "").strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return {name: values for name, *values in rows}


def test_the_page_on_what_erk_guid_does_shows_the_results():
    """M6: its tables are those of the study, and the paper's numbers those of the configs."""
    page, results = PAGE.read_text("utf-8"), read("quality.md")
    ours, _, rest = page.partition("## The paper's own tables")
    shown = [line for line in ours.splitlines() if line.startswith("| ")]
    assert len(shown) > 20 and [line for line in shown if line not in results] == []
    rows = {name: {row.name: row.published for row in load_config(name).rows}
            for name in ("table2", "table10")}  # fmt: skip
    printed = [
        rows["table2"]["32 steps"], rows["table2"]["32 steps, w_stiff 0.5"],
        rows["table10"]["(C) adaptive, tau 0.5"], rows["table2"]["32 steps, w_stiff 1"],
        rows["table2"]["32 steps, w_stiff 2"],
    ]  # fmt: skip
    cells = [line.strip("| ").split(" | ") for line in rest.splitlines() if line.startswith("| ")]
    for line, one in zip(cells[2:], printed, strict=True):
        assert line[1:] == [f"{one.get('nfe', 63)}", f"{one['fd_dinov2']}", f"{one['fid']:.2f}"]


def test_what_the_page_says_of_error_and_sharpening_holds():
    """M6: on every network of the page, in the records of the study."""
    rows = json.loads(read("quality.json"))["finished"]

    def fd(network, name, base):
        change = paired(rows[f"{network}: {name}"], rows[f"{network}: {base}"])["fd"]
        return 100 * change["value"] / rows[f"{network}: {base}"]["fd"]

    def distance(network, name, base):
        return rows[f"{network}: {name}"]["distance"] / rows[f"{network}: {base}"]["distance"]

    for network in SEEDS_OF_TRAINING:
        removed = fd(network, "32 steps, converged", "32 steps")
        assert -1.5 < removed < -1  # and as much by the small weight, halved steps and auto
        for name in ("32 steps, w_stiff 0.5", "32 steps, halved", "32 steps, auto"):
            assert abs(fd(network, name, "32 steps") - removed) < 0.3
            assert distance(network, name, "32 steps") < 0.4
        weights = (0.5, 1.0, 1.5, 2.0)
        falls = [fd(network, weight_name(32, w), "32 steps") for w in weights]
        assert falls == sorted(falls, reverse=True) and -18 < falls[-1] < -7.5
        assert distance(network, "32 steps, w_stiff 1", "32 steps") > 2
        assert distance(network, "32 steps, w_stiff 2", "32 steps") > 10
        least = fd(network, "8 steps, converged", "8 steps")
        assert least < fd(network, "8 steps, auto", "8 steps") < -16
        assert fd(network, "8 steps, w_stiff 0.5", "8 steps") > 0
        at = {w: distance(network, weight_name(32, w), "32 steps") for w in WEIGHTS}
        assert min(at, key=at.__getitem__) == 0.5 and at[OPTIMUM] < 0.45
    page = " ".join(PAGE.read_text("utf-8").split())

    def changes(steps, name):
        return [fd(network, f"{steps} steps{name}", f"{steps} steps")
                for network in SEEDS_OF_TRAINING]  # fmt: skip

    by_weight = {n: {w: changes(n, f", w_stiff {w:.3g}") for w in WEIGHTS} for n in W_CON}
    for n, most in ((8, 0.9), (6, 0.9)):
        for w in (0.25, OPTIMUM):
            assert all(distance(one, weight_name(n, w), f"{n} steps") < most
                       for one in SEEDS_OF_TRAINING)  # fmt: skip
    small = [*by_weight[8][0.25], *by_weight[8][OPTIMUM]]
    assert f"{-min(small):.1f}" == "2.1" and f"{by_weight[8][OPTIMUM][1]:.1f}" == "6.7"
    assert sorted(small)[-1] == by_weight[8][OPTIMUM][1] and sorted(small)[-2] < 0
    large = [one for w in WEIGHTS if w >= 1 for one in by_weight[8][w]]
    assert f"by {min(large):.0f} % and more" in page
    assert min(by_weight[8][0.25]) == min(small) and "2.1 % at most (0.25)" in page
    assert "0.408 raises it by 6.7 % for one seed, and from 1" in page
    for w in (0.25, OPTIMUM, 0.5):
        assert [change > 0 for change in by_weight[6][w]] == [True, True, False]
    least = min(map(min, by_weight[6].values()))
    assert by_weight[6][OPTIMUM][2] == least and f"by up to {-least:.1f} %" in page
    assert all(one > 100 for w in WEIGHTS if w >= 1 for one in by_weight[6][w])
    removed = [fd(one, "16 steps, converged", "16 steps") for one in SEEDS_OF_TRAINING]
    for w in (0.25, OPTIMUM, 0.5):
        assert all(a < b < 0 for a, b in zip(removed, by_weight[16][w], strict=True))
    halves = [distance(one, weight_name(16, 0.5), "16 steps") for one in SEEDS_OF_TRAINING]
    assert f"{min(halves):.2f} to {max(halves):.2f} of Heun's" in page
    best = [min(WEIGHTS, key=lambda w, i=i: by_weight[16][w][i]) for i in range(3)]
    assert best == [1.5, 2.0, OPTIMUM]
    assert "at 1.5 for the first, at 1.5 or 2 for the second and at 0.408 for the third" in page
    last = [f"{abs(one):.0f}" for one in by_weight[16][2.5]]
    assert "{} % above Heun's, {} % below and {} % above".format(*last) in page
    record = cells("16 steps, w_con 0.3. Plain Heun: digits-early")
    assert "by {}, {} and {} %".format(*record["auto"][:3]) in page
    assert "by {}, {} and +{} %".format(*record["w_stiff 1.5"][:3]) in page
    record = cells("32 steps, w_con 0.5. Plain Heun: digits-early")
    for row, words in (
        ("sharpening of w_stiff 2 alone", "lowers FD by {}, {} and {} %, `w_stiff` 2"),
        ("w_stiff 2", "`w_stiff` 2 by {}, {} and {} %"),
    ):
        assert all(one.startswith("-") for one in record[row][:3])
        falls = [one.removeprefix("-") for one in record[row][:3]]
        assert words.format(*falls) in page
    one, other = (record[name][0] for name in ("sharpening of w_stiff 1 alone", "w_stiff 1"))
    assert f"(by {one[1:]} against {other[1:]} % for the first)" in page
    alone = [float(record["sharpening of w_stiff 1 alone"][i].split()[0]) for i in range(3)]
    with_it = [float(record["w_stiff 1"][i].split()[0]) for i in range(3)]
    assert sum(a < b for a, b in zip(alone, with_it, strict=True)) == 2  # more, on two of three
    farther = [distance(network, sharp_name(32, 1.0), "32 steps")
               > distance(network, weight_name(32, 1.0), "32 steps")
               for network in SEEDS_OF_TRAINING]  # fmt: skip
    assert all(farther)
    for one, more in zip(changes(8, ", sharpening of w_stiff 1 alone"), by_weight[8][1.0],
                         strict=True):  # fmt: skip
        assert 0 < one < more


def test_what_the_page_says_of_mnist_holds():
    """At 32 steps there is little error to remove, at 6 most of FD is error; no weight finds it."""
    record, page = cells("mnist.\n"), " ".join(PAGE.read_text("utf-8").split())
    assert all("–" not in cells[:4] for row, cells in record.items() if "sharpening" not in row)

    def change(row, steps):
        value, _, error = record[row][[*W_CON].index(steps)].partition(" ± ")
        return float(value), float(error)

    def said(row, steps):
        return record[row][[*W_CON].index(steps)].removeprefix("-")

    weights = [f"w_stiff {w:.3g}" for w in WEIGHTS]
    assert -0.5 < change("converged", 32)[0] < 0
    assert all(change(w, 32)[0] > 3 * change(w, 32)[1] for w in weights[1:5])
    assert [w for w in weights if change(w, 32)[0] < -2 * change(w, 32)[1]] == ["w_stiff 2.5"]
    assert all(change(w, n)[0] > 3 * change(w, n)[1] for w in weights for n in (16, 6))
    assert [w for w in weights if change(w, 8)[0] < 0] == weights[:3]
    assert all(change("auto", n)[0] < -4 * change("auto", n)[1] for n in W_CON)
    for n in (8, 6):
        assert all(change(w, n)[0] > 90 for w in weights[3:])
    assert all(float(record["w_stiff 0.5"][i].split()[0]) > 0.9 for i in (4, 5))
    assert float(record["halved"][4].split()[0]) < 0.3 < 0.9 < float(record["auto"][4].split()[0])
    for words in (
        f"`auto`, which lowers FD by {said('auto', 32)} %",
        f"lowers FD by only {said('converged', 32)} %",
        f"1.5 by {said('w_stiff 1.5', 32)} %",
        f"`w_stiff` 2.5 lowers FD by more than two standard errors, by {said('w_stiff 2.5', 32)} %",
        f"of 1 and 2 alone lowers it by {said(SHARP.format(1), 32)} and "
        f"{said(SHARP.format(2), 32)} %",
        f"by {said('w_stiff 0.25', 16)} % at 0.25 already",
        f"by {said('halved', 16)} and {said('converged', 16)} %",
        f"0.5 by {said('w_stiff 0.5', 8)} %, but `auto` by {said('auto', 8)} % and the converged "
        f"solution by {said('converged', 8)} %",
        f"`auto` lowers it by {said('auto', 6)} % and the converged solution by "
        f"{said('converged', 6)} %",
        f"`w_stiff` 1 and 2 raise FD by {said('w_stiff 1', 8)} and {said('w_stiff 2', 8)} %",
        f"their sharpening alone by {said(SHARP.format(1), 8)} and {said(SHARP.format(2), 8)} %",
    ):
        assert words in page, words


def test_what_the_page_says_of_digits_holds():
    """The network that is trained to the end: what few steps cost, and what brings it back."""
    record, page = cells("digits.\n"), " ".join(PAGE.read_text("utf-8").split())

    def value(row, column):
        return float(record[row][column].split()[0])

    few = (1, 2, 3)  # the columns of FD at 16, 8 and 6 steps
    for row in ("converged", "auto"):
        assert "{}, {} and {} %".format(*(record[row][i] for i in few)) in page
    weights = [f"w_stiff {w:.3g}" for w in WEIGHTS]
    best = [min(weights, key=lambda row, i=i: value(row, i)) for i in few]
    parts = [(record[row][i], row.split()[1]) for row, i in zip(best, few, strict=True)]
    assert "by {} ({}), {} ({}) and {} % ({})".format(*sum(parts, ())) in page
    assert all(value("auto", i) < 1.5 * value(row, i) for row, i in zip(best, few, strict=True))
    shares = [value(row, i) / value("converged", i) for row, i in zip(best, few, strict=True)]
    assert 0.6 < shares[0] < 0.7 and max(shares[1:]) < 0.12
    for column, least in ((1, 1.5), (2, 1.0), (3, 1.0)):
        assert all((value(f"w_stiff {w:.3g}", column) > 100) == (w >= least) for w in WEIGHTS)
    for w in (0.25, OPTIMUM, 0.5):
        change, _, error = record[f"w_stiff {w:.3g}"][0].partition(" ± ")
        assert abs(float(change)) < 2 * float(error)
    change, _, error = record["converged"][0].partition(" ± ")
    assert abs(value("auto", 0) - float(change)) < float(error)
    for row, words in (
        ("w_stiff 1", "`w_stiff` 1 lowers it by {} %"),
        ("sharpening of w_stiff 1 alone", "and its sharpening alone by {} %"),
        ("w_stiff 2", "but `w_stiff` 2 raises it by {} %"),
        ("sharpening of w_stiff 2 alone", "and its sharpening alone by {} %"),
    ):
        assert record[row][0].startswith("-") == ("w_stiff 1" in row)
        assert words.format(record[row][0].removeprefix("-")) in page
    assert f"(`auto` {record['auto'][0]} %)" in page
