"""Figures 1-9 and Tables 1, 6, 7: each computed at a tiny size, its numbers checked."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import erk
from erk.analysis import oracles as analysis
from erk.analysis import plots, toy_results
from erk.analysis.toy import tree
from erk.calibration.parts import Parts
from erk.calibration.problem import count_nfe
from erk.generation.job import Job
from erk.generation.options import networks_of, settings_of
from erk.generation.sampling import generate
from erk.method.point import Point
from erk.method.settings import Settings
from scripts.paper import costs, distance, estimator, figures, reproduce, text_to_image, toy
from scripts.paper.config import Experiment, Request, load_config
from scripts.paper.plan import options_of_row
from scripts.paper.rows import Rows
from scripts.paper.scales import at_scale, scales

FIGURES = {"figure1": 0, "figure2": 0, "figure3": 1, "figure4": 32, "figure5": 2, "figure6": 16,
           "figure7": 1, "figure8": 7, "figure9": 13}  # fmt: skip
NETWORKS = ("figure3", "figure4", "figure6", "figure7", "figure8", "figure9")
PAGES = ("csv", "md", "tex", "html", "json")


def digits_of(name, **settings):
    """An experiment on digits, whose rows have other settings, such as fewer steps."""
    config = at_scale(load_config(name), Request())
    rows = [row.model_copy(update={"settings": row.settings | settings}) for row in config.rows]
    return config.model_copy(update={"rows": rows})


def page(request, name):
    return json.loads((request.results / f"{name}.json").read_text("utf-8"))


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A Request of few images, with its own results and cache."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    return Request(num=3, results=tmp_path / "results")


@pytest.fixture(scope="module")
def digits():
    return erk.load_model("digits")


def gaussian(variances):
    """The exact drift of data with these variances: J is diagonal, sigma / (s + sigma^2)."""

    def drift(x, sigma):
        return Point(x, x * sigma / (variances + sigma**2), sigma)

    return drift


def test_every_figure_has_its_config():
    for name, rows in FIGURES.items():
        config = load_config(name)
        assert len(config.rows) == rows and config.paper and config.title
        assert {row.against for row in config.rows} <= {None, *(row.name for row in config.rows)}


@pytest.mark.parametrize("scale", ["paper", *scales()][:4])
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_heun_with_one_network(name, scale):
    config = at_scale(load_config(name), Request(scale=scale))
    guided = 0
    for row in config.rows:
        options = options_of_row(config, row, Request(scale=scale))
        settings = settings_of(options, networks_of(options)[2])
        assert count_nfe(settings) == (2 * settings.steps - 1, 0)
        guided += settings.w_stiff > 0
    expected = {"figure3": 0, "figure4": 30, "figure6": 15, "figure7": 0, "figure8": 6}
    assert guided == expected.get(name, 12)


@pytest.mark.parametrize("name", [*FIGURES, "table1", "table6", "table7"])
def test_dry_run_tells_and_writes_nothing(name, tmp_path):
    done = CliRunner().invoke(
        reproduce.main, [name, "--dry-run", "--num", "8", "--results", str(tmp_path / "r")]
    )
    assert done.exit_code == 0 and len(done.output) > 40, done.output
    assert not (tmp_path / "r").exists()


# Figures 3 and 7


def test_jacobian_and_linear_part_are_those_of_the_network(digits):
    """Measured: J v, and with it 8 power iterations, agree to 3e-7."""
    noise, labels = erk.noise_and_labels(range(2), digits)
    drift, sigma = Settings().drift(digits, labels), torch.tensor(0.4)
    with torch.no_grad():
        at = drift(noise * 0.6, sigma)
        linear = estimator.linear(at, analysis.jacobian(drift, at.x, at.sigma))
        v = torch.randn(at.x.shape, generator=torch.Generator().manual_seed(0))
        there, here = (analysis.jvp(one, at.x, sigma, v)[1] for one in (drift, linear))
        assert (here - there).norm() < 1e-5 * there.norm()
        histories = [
            analysis.power_iteration(one, at.x, sigma, 8).history for one in (drift, linear)
        ]

    assert torch.allclose(*histories, rtol=1e-5)


def test_values_of_a_known_jacobian():
    """Gaussian data of variances 1, 1/4, 1/100 at sigma 0.5: the last axis is the stiff one."""
    variances, sigma = torch.tensor([1.0, 0.25, 0.01]), torch.tensor(0.5)
    drift = gaussian(variances)
    draw = torch.Generator().manual_seed(0)
    x, step = (torch.randn(4, 3, generator=draw) for _ in range(2))
    start, twin = drift(x, sigma), drift(x + 0.1 * step, sigma)
    j = analysis.jacobian(drift, start.x, start.sigma)
    assert torch.allclose(j, torch.diag(sigma / (variances + sigma**2)).expand(4, 3, 3))
    rows = estimator._compare(drift, start, twin, 60, j)
    values = dict(zip(estimator.VALUES, rows, strict=False))
    history = rows[len(values) :]
    top = 0.5 / 0.26
    assert torch.allclose(values[estimator.EXACT], torch.tensor(top, dtype=torch.float64))
    assert torch.allclose(values[estimator.POWER].float(), torch.tensor(top))
    assert torch.allclose(values[estimator.EIGENVECTOR].float(), torch.ones(4), atol=1e-5)
    solution = step[:, 2].abs() / step.norm(dim=1)
    assert torch.allclose(values[estimator.SOLUTION].float(), solution, atol=1e-4)
    assert (values[estimator.DRIFT] > values[estimator.SOLUTION]).all()  # J favours its axis
    assert (values[estimator.ESTIMATE] < top).all() and history.shape == (60, 4)


def test_large_states_take_the_way_without_jacobians(digits, monkeypatch, tmp_path):
    """As EDM2-S does; the exact values are not known. What is computed is kept."""
    config = digits_of("figure3", steps=4)
    options = options_of_row(config, config.rows[0], Request(num=2))
    job = estimator.open_job(options)
    small = estimator.study(job, 12, Parts())
    monkeypatch.setattr(estimator, "SMALL", 10)
    large = estimator.study(job, 12, Parts(tmp_path, "job", 1))
    monkeypatch.setattr(estimator, "_compare", pytest.fail)
    again = estimator.study(job, 12, Parts(tmp_path, "job", 1))
    assert torch.equal(again.history, large.history)
    assert small.values[estimator.POWER].shape == (2, 2) and small.history.shape == (12, 2, 2)
    first = [one.values[estimator.ESTIMATE] for one in (small, large)]
    assert torch.equal(*first)
    assert (
        large.values[estimator.EXACT].isnan().all()
        and not small.values[estimator.EXACT].isnan().any()
    )
    content = estimator.estimates(large, bins=2)
    assert content.rows[0][estimator.EIGENVECTOR] is None
    assert [table.columns for table in estimator.convergence(large).tables] == [
        ["iteration", *estimator.QUARTILES]
    ]


def test_figures_3_and_7(few):
    shown = {}
    for name in ("figure3", "figure7"):
        config = digits_of(name, steps=8)
        options = config.options.model_copy(update={"iterations": 40})
        config = config.model_copy(update={"options": options})
        written = estimator.run(config, few)
        assert {path.name for path in written} == {f"{name}.{e}" for e in (*PAGES, "png")}
        shown[name] = page(few, name)
        assert shown[name]["made_by"][0]["versions"]["torch"] == torch.__version__
        assert "seeds 100000-100002" in shown[name]["notes"][0]
    *bins, together = shown["figure3"]["rows"]
    assert len(bins) == 8 and sum(row["states"] for row in bins) == 6 * 3
    stiffness = [row["stiffness"] for row in bins]
    assert stiffness == sorted(stiffness) and stiffness[0] < 0.1 < 10 < stiffness[-1]
    assert abs(bins[0][estimator.RATIO] - 1) < 0.02  # 0.996: all eigenvalues are near 1/sigma there
    assert bins[-1][estimator.RATIO] < 1  # a secant slope stays below the largest eigenvalue
    assert together["Pearson of logs"] > 0.95 and together["Spearman"] > 0.95
    assert together["|cos| of a random direction"] == pytest.approx(0.0852, abs=1e-4)
    rows = shown["figure7"]["rows"]
    estimated, true = (f"{name}, median" for name in (estimator.OWN, estimator.TRUE))
    assert [row["iteration"] for row in rows] == list(range(1, 41))
    assert (
        rows[-1][estimated] == 0 and rows[0][estimated] > rows[9][estimated] > rows[29][estimated]
    )
    assert 0 < rows[-1][true] < rows[0][true] / 2
    assert rows[-1][f"{estimator.TRUE}, 25 %"] <= rows[-1][true]


# Tables 6 and 7


def test_median_interval_is_that_of_the_sign_test():
    """10 values: 2nd smallest to 2nd largest (97.9 %); 5 values reach 93.8 % at most."""
    assert costs.median_interval([5, 1, 4, 2, 3, 10, 9, 8, 7, 6]) == (5.5, (2, 9))
    assert costs.median_interval([3, 1, 2, 5, 4]) == (3, None)


def test_peak_bytes_counts_what_lives_at_a_time(digits):
    """Two tensors of 1 MB one after the other, then two at once."""
    job = costs.Job(digits, None, Settings(), [0], "random", 1, None, {}, {})

    def one_by_one():
        for _ in range(3):
            torch.zeros(250_000)

    def together():
        return [torch.zeros(250_000) for _ in range(2)]

    assert 1_000_000 <= costs.peak_bytes(one_by_one, job) < 1_001_000
    assert 2_000_000 <= costs.peak_bytes(together, job) < 2_001_000


def test_table_6(few, monkeypatch):
    monkeypatch.setattr(costs, "LARGE", 2)
    monkeypatch.setattr(costs, "FEWER", 2)
    written = costs.run(digits_of("table6", steps=5), few._replace(num=6))
    assert {path.name for path in written} == {f"table6.{e}" for e in PAGES}
    content = page(few, "table6")
    rows, differences = content["rows"][:8], content["rows"][8:]
    assert [(row["row"], row["batch"], row["clock"], row["rounds"]) for row in rows] == [
        (name, batch, clock, count)
        for batch, count in ((1, 6), (2, 3)) for clock in ("wall", "CPU")
        for name in ("Heun", "ERK-Guid")
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["min"] <= row["median"] <= row["max"]
        assert row["min"] <= row["avg"] <= row["max"]
    for cost in differences:
        assert cost["difference per step"] == pytest.approx(cost["difference"] / 3)  # 5 steps
        assert 0 < cost["correction alone per step"] < rows[0]["median"] / 5
    intervals = [cost["95 % interval"] for cost in differences]
    assert intervals[2:] == ["too few pairs"] * 2 and "too few pairs" not in intervals[:2]
    assert "2.777" in (few.results / "table6.md").read_text("utf-8")


def test_table_7_counts_one_sample_more(few, monkeypatch):
    """Measured: ERK-Guid holds one sample (256 bytes) more at the peak."""
    monkeypatch.setattr(costs, "LARGE", 8)
    costs.run(digits_of("table7", steps=5), few)
    rows = page(few, "table7")["rows"]
    assert [(row["row"], row["batch"]) for row in rows] == [
        ("Heun", 1), ("ERK-Guid", 1), ("Heun", 8), ("ERK-Guid", 8)
    ]  # fmt: skip
    assert all(row["MB"] == row["bytes"] / 2**20 for row in rows)
    assert 256 < rows[0]["bytes"] < rows[2]["bytes"] < 8 * rows[0]["bytes"]  # 151 kB, 448 kB
    assert all(0 <= row["bytes more per image"] <= 4 * 256 for row in rows[1::2])
    again = [row["bytes"] for row in rows]
    costs.run(digits_of("table7", steps=5), few)
    assert [row["bytes"] for row in page(few, "table7")["rows"]] == again


# Figures 4 and 6


@pytest.mark.parametrize(
    ("name", "rows", "count"), [("figure4", "0-1,16-18", 5), ("figure6", "0,3,8,13", 4)]
)
def test_sweeps(name, rows, count, few, monkeypatch):
    monkeypatch.setattr(distance, "EVALUATIONS", 16)
    config, request = digits_of(name), few._replace(num=24, rows=rows)
    table = Rows([Experiment(config, request)])
    assert table.measure()
    written = figures.write_sweep(config, request, table.finished(0))
    assert {path.name for path in written} == {f"{name}.{e}" for e in (*PAGES, "png")}
    content = page(few, name)
    assert content["files"] == [f"{name}.png"] and len(content["rows"]) == len(config.rows)
    measured = [row for row in content["rows"] if row["measured"]]
    plain = {row["name"]: row for row in measured if row["against"] is None}
    guided = [row for row in measured if row["against"] is not None]
    assert len(measured) == count and plain and len(plain) + len(guided) == count
    for row in guided:
        change = row["ours"]["fd"] - plain[row["against"]]["ours"]["fd"]
        assert row["paired"]["fd"]["value"] == pytest.approx(change) != 0
    assert any("NOT MEASURED YET" in note for note in content["notes"])
    guided = [row for row in guided if row["settings"]["erk"] is None]
    lowest = min(guided, key=lambda row: row["ours"]["fd"])
    assert any("least FD" in note and lowest["name"] in note for note in content["notes"])
    assert "| row |\n" not in (few.results / f"{name}.md").read_text("utf-8")  # no empty table


def row_of(w_stiff, w_con, fd, scale="quadratic", steps=8):
    paired = {"fd": {"value": fd - 4, "error": 0.1}} if w_stiff else {}
    return {"steps": steps, "w_stiff": w_stiff, "w_con": w_con, "erk_scale": scale,
            "ours": {"fd": fd, "accuracy": 1 - fd / 10}, "paired": paired}  # fmt: skip


def test_curves_show_what_was_measured(monkeypatch):
    """The lines of both images hold the rows' numbers; the same rows give the same bytes."""
    seen = []
    monkeypatch.setattr(
        figures, "png", lambda figure: seen.append([
            line.get_xydata().tolist() for axis in figure.axes for line in axis.lines
        ]) or plots.png(figure),
    )  # fmt: skip
    rows = [row_of(0.0, 0.5, 4.0), row_of(1.0, 0.5, 3.0), row_of(1.0, 0.1, 3.5)]
    first = figures.over_w_con(rows, ["fd"])
    assert figures.over_w_con(rows[::-1], ["fd"]) == first and first.startswith(b"\x89PNG")
    assert [[0.1, 3.5], [0.5, 3.0]] in seen[0]  # in order of w_con
    assert [y for _, y in seen[0][0]] == [4.0, 4.0]  # Heun, a level line
    rows = [row_of(0.0, 0.5, 4.0), row_of(0.2, 0.5, 3.0, "abs"), row_of(0.1, 0.5, 3.5, "abs")]
    figures.scalings(rows, ["fd", "accuracy"])
    assert [[3.5, 0.65], [3.0, 0.7]] in seen[-1] and [[4.0, 0.6]] in seen[-1]
    z, alpha = np.array(seen[-1][0]).T
    assert np.allclose(alpha[z != 0], (np.expm1(z) / z - 1 - z / 2)[z != 0], atol=1e-9)


def test_images_carry_no_date():
    """Only the chunks that an image needs: matplotlib's own text names a version."""
    with plots.panels(1) as (figure, axes):
        axes[0, 0].plot([0, 1])
        data = plots.png(figure)
    assert b"tEXt" not in data and b"tIME" not in data and b"iTXt" not in data
    assert [colour for colour in plots.COLOURS] == list(dict.fromkeys(plots.COLOURS))


# Figures 8 and 9


def test_figure_8_shows_the_images_of_generate(few, digits):
    config = digits_of("figure8")
    written = figures.run_grid(config, few._replace(rows="0,2"))
    content = page(few, "figure8")
    assert [row["sheet"] for row in content["rows"]] == ["figure8/0.png", "figure8/0.5.png"]
    assert {few.results / row["sheet"] for row in content["rows"]} < set(written)
    assert content["rows"][0]["classes"] == [0, 1, 2] and content["rows"][1]["NFE"] == 11
    sheets, seeds = [], range(100000, 100003)
    for row in content["rows"]:
        settings = Settings(steps=6, w_stiff=row["w_stiff"], w_con=0.3)
        batch = next(generate(Job(digits, settings, seeds=seeds, labels="balanced", batch=3)))
        sheets.append(np.asarray(Image.open(few.results / row["sheet"])))
        for i, image in enumerate(batch.wait()[:, 0].numpy()):
            left = 1 + i * 49
            assert (sheets[-1][1:49:6, left : left + 48 : 6] == image).all()
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()


def test_figure_9_names_equal_images_and_has_a_place_for_each(few):
    """At 6 steps no stiffness of these seeds lies between 0.3 and 0.5."""
    figures.run_grid(digits_of("figure9"), few._replace(rows="0-3"))
    content = page(few, "figure9")
    assert [row["w_con"] for row in content["rows"]] == [None, 0.1, 0.3, 0.5]
    assert [row["sheet"] for row in content["rows"]][1] == "figure9/0.5-0.1.png"
    same = [note for note in content["notes"] if note.startswith("Identical in every pixel")]
    assert same == ["Identical in every pixel: w_stiff 0.5, w_con 0.3; w_stiff 0.5, w_con 0.5."]
    with Image.open(few.results / "figure9.png") as image:
        assert image.width > image.height > 200


def test_large_images_are_averaged_for_the_figure():
    images = np.arange(2 * 3 * 520 * 520).reshape(2, 3, 520, 520) % 251
    small = figures._shrunk(images.astype(np.uint8))
    assert small.shape == (2, 3, 173, 173)  # 520 // 3, the last column left out
    assert small[1, 2, 5, 7] == round(images[1, 2, 15:18, 21:24].mean())
    assert (figures._shrunk(small) == small).all()


# Figure 5 and the toy


def test_figure_5_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_image, "try_to_load_from_cache", lambda *_: None)
    how = ["--scale", "paper", "--results", str(tmp_path / "r")]
    done = CliRunner().invoke(reproduce.main, ["figure5", *how])
    assert done.exit_code == 2 and "Traceback" not in done.output
    for word in ("15 steps", "DPM-Solver with ERK-Guid", "hf download",
                 "https://huggingface.co/PixArt-alpha/PixArt-XL-2-1024-MS"):  # fmt: skip
        assert word in done.output, word
    assert not (tmp_path / "r").exists()
    done = CliRunner().invoke(reproduce.main, ["figure5", "--results", str(tmp_path / "r")])
    assert done.exit_code == 0
    text = (tmp_path / "r" / "figure5.md").read_text("utf-8")
    assert "NOT COMPUTED" in text and "hf download PixArt-alpha" in text
    assert not (tmp_path / "r" / "figure5.png").exists()


def test_toy_pages_hold_the_numbers_of_the_toy(few, monkeypatch):
    monkeypatch.setattr(toy_results, "SUBSTEPS", 5)
    files = {
        name: toy.run(load_config(name), few._replace(num=8))
        for name in ("table1", "figure1", "figure2")
    }
    assert {path.name for path in files["table1"]} == {f"table1.{e}" for e in PAGES}
    assert few.results / "figure2.png" in files["figure2"]
    rows = page(few, "table1")["rows"]  # S3: both points
    for point, part in ((toy_results.STIFF, rows[:4]), (toy_results.BRANCH, rows[4:])):
        expected = [{"from": str(point), **row} for row in toy_results.table1(tree("A"), point)]
        assert part == expected
    lines = page(few, "figure1")["rows"]
    assert {row["line"] for row in lines} == {"AB", "CD", "EF", "GH"}
    rows = page(few, "figure2")["rows"]
    assert {"LTE", "ERK solution difference", "CFG", "Autoguidance"} <= {
        r["quantity"] for r in rows
    }
    assert all(0 <= r["Q75-100"] <= 1 for r in rows if r["median"] == "|cos|")
    assert "240 states" in page(few, "figure2")["tables"][0]["caption"]
