"""Films, plots of traces, comparisons and neighbours, on runs of the embedded network."""

import csv

import click.testing
import numpy as np
import pytest
from PIL import Image

from erk.analysis.trace_plot import COLUMNS, plot_trace
from erk.commands import compare, generate, nearest, trace
from erk.generation.images import png_bytes, read_png
from erk.generation.sheets import SheetCell, captioned_sheet, fitted
from metrics.images import open_images
from metrics.references import real_images

JOB = ["--preset", "digits", "--labels", "balanced", "--steps", "4", "--batch", "16",
       "--device", "cpu"]  # fmt: skip


def run(script, *arguments):
    """(exit code, output, last line of the errors) of a command."""
    result = click.testing.CliRunner().invoke(script.main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, (result.stderr.splitlines() or [""])[-1]


def places_of(one_image, page, off=0):
    """(top, left) wherever a image stands on a page, up to `off` grey levels."""
    shown, page = fitted(one_image)[0].astype(int), page[0].astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(page, shown.shape)
    probes = [(y, x) for y in range(0, shown.shape[0], 8) for x in range(0, shown.shape[1], 8)]
    near = np.all([np.abs(windows[..., y, x] - shown[y, x]) <= off for y, x in probes], 0)
    return [p for p in np.argwhere(near).tolist() if np.abs(windows[*p] - shown).max() <= off]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of seeds 0-19, without and with ERK-Guid, as PNG and npz, and their traces."""
    target = tmp_path_factory.mktemp("runs")
    for name, options in {
        "off": ["--seeds", "0-19"],
        "on": ["--seeds", "4-19", "--w-stiff", "0.5", "--w-con", "0.3", "--format", "npz"],
    }.items():
        code, _, error = run(generate, *JOB, *options, "--outdir", target / name, "--trace",
                             target / f"{name}.npz")  # fmt: skip
        assert code == 0, error
    return target


# Sheets


def test_a_sheet_holds_every_image_at_its_position():
    rng = np.random.default_rng(0)
    sample_images = rng.integers(0, 255, (6, 1, 8, 8), dtype=np.uint8)
    pairs = zip(sample_images[:3], sample_images[3:], strict=True)
    columns = [[SheetCell(a, "one"), SheetCell(b)] for a, b in pairs]
    page = captioned_sheet(columns, ["x", "D"], "title", per_line=2)
    assert page.dtype == np.uint8 and page.shape[0] == 3
    computed = [places_of(one_image, page) for one_image in sample_images]
    assert [len(owners) for owners in computed] == [1] * 6
    rows = [owners[0] for owners in computed]
    assert rows[0][0] == rows[1][0] < rows[3][0] == rows[4][0] < rows[2][0]  # third: a new line
    assert rows[0][1] == rows[3][1] == rows[2][1] < rows[1][1]


@pytest.mark.parametrize(
    ("size", "shown"), [(8, 128), (28, 112), (64, 128), (256, 256), (512, 256)]
)
def test_images_are_scaled_by_whole_factors(size, shown):
    image = np.arange(size, dtype=np.uint8)[None, None].repeat(size, 1)
    assert fitted(image).shape == (3, shown, shown)
    assert fitted(np.full((3, size, size), 9, np.uint8)).tolist()[0][0][0] == 9


def test_images_of_two_sizes_make_no_sheet():
    with pytest.raises(ValueError, match="one size"):
        captioned_sheet([[SheetCell(np.zeros((1, 8, 8), np.uint8))],
                         [SheetCell(np.zeros((1, 16, 8), np.uint8))]], ["a"])  # fmt: skip


# Films


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_film_shows_x_and_d_of_every_step(runs, tmp_path, kind):
    target = tmp_path / "sub" / f"film.{kind}"
    out = tmp_path / "out"
    arguments = ("--seeds", "4-6", "--outdir", out, "--animate", target)
    code, report, error = run(generate, *JOB, *arguments)
    assert code == 0, error
    assert f"wrote {target}: x and D of 3 seeds" in report
    with Image.open(target) as film:
        assert film.n_frames == 5  # the starts of 4 steps, and the sample
        film.seek(4)
        last = np.asarray(film.convert("RGB")).transpose(2, 0, 1)
    sample = read_png(out / "000004.png")
    assert len(places_of(sample, last, off=1)) == 2  # as x and as D; rounding of another batch
    again = tmp_path / f"again.{kind}"  # a run that is complete is filmed all the same
    assert run(generate, *JOB, "--seeds", "4-6", "--outdir", out, "--animate", again)[0] == 0
    assert again.read_bytes() == target.read_bytes()


def test_a_film_of_a_guided_run_follows_the_guide(tmp_path, monkeypatch):
    from erk.generation import film
    from erk.generation.options import open_job

    frames = []
    monkeypatch.setattr(film, "captioned_sheet", lambda columns, *_: frames.append(columns))
    asked = ["--preset", "digits-autog", "--seeds", "0-1", "--steps", "3", "--device", "cpu"]
    options = generate.main.make_context("generate.py", asked).params
    job = open_job(options)
    film.film(job)
    source, noise, _, vectors = film.draw_inputs(job.model, [0, 1], job.labels, None)
    x = noise * 80
    strong, weak = job.model(x, 80.0, vectors), job.guide(x, 80.0, vectors)
    expected = job.model.decode(weak.lerp(strong, 1.25)).numpy()
    first = np.stack([column[1].image for column in frames[0]])
    assert np.abs(first.astype(int) - expected).max() <= 1


def test_films_of_shards_and_ranks_are_made_once(tmp_path, monkeypatch):
    target = tmp_path / "film.gif"
    job = [*JOB, "--seeds", "0-3", "--outdir", tmp_path / "out", "--animate", target]
    assert run(generate, *job, "--shard", "1/2")[0] == 0 and not target.exists()
    assert run(generate, *job, "--shard", "0/2")[0] == 0 and target.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--animate", "film.mp4"], "an animation is a .gif or .webp file"),
        (["--animate", "file/film.gif"], "cannot write to"),
        (["--animate", "film.gif", "--evaluate", "digits"], "exclude each other"),
    ],
)
def test_films_refuse_in_one_sentence(tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, report, error = run(generate, *JOB, "--seeds", "0", "--outdir", "out", *options)
    assert (code, report) == (2, "") and error.startswith("Error: ") and reason in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Traces


def test_a_trace_becomes_a_figure(runs, tmp_path):
    out = tmp_path / "trace.png"
    traces = runs / "on.npz", runs / "off.npz"
    code, report, error = run(trace, *traces, "--w-con", 0.3, "--out", out)
    assert (code, report) == (0, f"wrote {out}\n"), error
    image = np.asarray(Image.open(out))
    assert image.shape[1] > 1000 and 200 < image.shape[0] < 900 and image.std() > 10
    first = out.read_bytes()
    run(trace, *traces, "--w-con", 0.3, "--out", out)
    assert out.read_bytes() == first


def test_plot_trace_draws_the_numbers_of_the_trace(runs, monkeypatch):
    """Medians as drawn, read back from matplotlib's own lines."""
    from erk.analysis import trace_plot

    drawn = {}

    def keep(figure):
        for axes in figure.axes:
            drawn[axes.get_title()] = [line.get_xydata() for line in axes.get_lines()]
        return b""

    monkeypatch.setattr(trace_plot, "png", keep)
    content = trace.read_trace(runs / "on.npz")
    trace_plot.plot_trace(content)
    known = ~np.isnan(content["stiffness"]).any(1)
    (stiffness,) = drawn["estimated stiffness"]
    np.testing.assert_allclose(stiffness[:, 0], content["sigmas"][known])
    medians = np.median(content["stiffness"][known], 1)
    np.testing.assert_allclose(stiffness[:, 1], medians, rtol=1e-6)
    (gate,) = drawn["share of samples"]
    np.testing.assert_allclose(gate[:, 1], content["gate"][known].mean(1), rtol=1e-6)
    assert len(drawn["embedded error of the pair"]) == 2
    off = trace.read_trace(runs / "off.npz")
    trace_plot.plot_trace(off, w_con=0.3)  # N10: above the threshold, and yet not corrected
    corrected, above = drawn["share of samples"]
    known = ~np.isnan(off["stiffness"]).any(1)
    assert (corrected[:, 1] == 0).all()
    assert (above[:, 1] == (off["stiffness"][known] > 0.3).mean(1)).all() and above[:, 1].max() > 0


def test_a_film_of_erk_guid_shows_plain_below(tmp_path, monkeypatch):
    from erk.generation import film
    from erk.generation.options import open_job

    frames = []
    monkeypatch.setattr(film, "captioned_sheet", lambda *sheet: frames.append(sheet))
    asked = [*JOB, "--seeds", "4-5", "--w-stiff", "0.5", "--w-con", "0.1"]
    options = generate.main.make_context("generate.py", asked).params
    film.film(open_job(options))
    columns, names, *_ = frames[-1]
    assert names == ["x", "D", "D, plain"]
    x, guided, plain = (column.image for column in columns[0])
    assert (x == guided).all() and (guided != plain).any()
    plain_options = generate.main.make_context("generate.py", [*JOB, "--seeds", "4-5"]).params
    frames.clear()
    film.film(open_job(plain_options))
    assert frames[-1][1] == ["x", "D"] and (frames[-1][0][0][1].image == plain).all()


def test_without_erk_guid_no_sample_is_corrected(runs):
    """N10: the stiffness is estimated all the same."""
    content = trace.read_trace(runs / "off.npz")
    known = ~np.isnan(content["stiffness"])
    assert (content["stiffness"][known] > 0).any()
    assert (content["gate"][known] == 0).all() and (content["push"][known] == 0).all()


def test_plot_trace_refuses_in_one_sentence(runs, tmp_path):
    no_pair = tmp_path / "short.npz"
    zeros = {n: np.full((1, 2), np.nan) for n in COLUMNS}
    np.savez(no_pair, sigmas=np.ones(1), seeds=np.arange(2), **zeros)
    broken = tmp_path / "broken.npz"
    broken.write_bytes((runs / "on.npz").read_bytes()[:300])
    out = tmp_path / "a.png"
    for arguments, reason in [
        ((tmp_path / "none.npz", "--out", out), "there is no file"),
        ((broken, "--out", out), "is no trace: write one with erk generate --trace"),
        ((runs / "on" / "images.npz", "--out", out), "is no trace"),
        ((no_pair, "--out", out), "has no step with a pair"),
        ((runs / "on.npz", "--out", tmp_path / "a.pdf"), "must end in .png"),
        ((runs / "on.npz", "--out", out, "--w-con", 0), "is not on a logarithmic axis"),
        ((runs / "on.npz", runs / "on.npz", "--out", out), "two traces have one name"),
    ]:
        code, report, error = run(trace, *arguments)
        assert (code, report) == (2, "") and error.startswith("Error: ") and reason in error, error
        assert not out.exists()


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("stiffness", np.full((3, 2), "1"), "its stiffness are <U1, not real numbers"),
        ("gate", np.ones((3, 2), complex), "its gate are complex128"),
        ("df", np.ones((3, 2), "datetime64[s]"), "its df are datetime64"),
        ("push", np.ones((2, 3)), "differ in shape"),
        ("stiffness", np.ones(3), r"its stiffness is not \[S, N\], S = 3"),
        ("sigmas", np.array(["3", "2", "1"]), "its sigmas are <U1"),
        ("sigmas", np.array([3, 2, np.nan]), "its sigmas must be positive"),
        ("sigmas", np.array([3, 2, -1]), "its sigmas must be positive"),
        ("sigmas", np.array([3.0, 2]), r"not \[S, N\], S = 2"),
        ("sigmas", np.ones((3, 2)), "its sigmas must be positive"),
    ],
)
def test_arrays_that_are_no_trace(tmp_path, name, values, reason):
    """R13: from a file and from Python"""
    arrays = {key: np.ones((3, 2)) for key in COLUMNS} | {"sigmas": np.array([3, 2, 1])}
    assert plot_trace(arrays).startswith(b"\x89PNG")
    arrays[name] = values
    with pytest.raises(ValueError, match=reason):
        plot_trace(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    code, _, error = run(trace, tmp_path / "a.npz", "--out", tmp_path / "a.png")
    assert code == 2 and "a.npz is no trace: write one with erk generate --trace" in error
    assert not (tmp_path / "a.png").exists()


# Two runs


def test_the_largest_differences_come_first(runs, tmp_path):
    out, table = tmp_path / "d.png", tmp_path / "d.csv"
    pair = runs / "off", runs / "on"
    code, report, error = run(compare, *pair, "--out", out, "--num", 3, "--csv", table)
    assert code == 0, error
    assert "w_stiff 0.0 / 0.5" in report and "w_con 0.5 / 0.3" in report
    assert report.startswith("settings")
    with open(table) as file:
        rows = {int(row["seed"]): float(row["difference"]) for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(4, 20))  # those of both
    pixels = np.load(runs / "on" / "images.npz")["arr_0"]
    for i, seed in enumerate(range(4, 20)):
        off = read_png(runs / "off" / f"{seed:06d}.png")[0].astype(float) - pixels[i, :, :, 0]
        assert rows[seed] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-12)
    worst = sorted(rows, key=rows.get)[::-1][:3]
    assert f"at most (seed {worst[0]})" in report
    page, owners = read_png(out), []
    for seed in worst:
        (target,) = places_of(read_png(runs / "off" / f"{seed:06d}.png"), page)
        owners.append(target[1])
    assert owners == sorted(owners)


def test_a_run_equals_itself(runs, tmp_path):
    code, report, _ = run(compare, runs / "off", runs / "off", "--out", tmp_path / "d.png")
    assert code == 0 and "the same" in report and "20 equal" in report


def test_compare_refuses_in_one_sentence(runs, tmp_path):
    small, unnamed, other = tmp_path / "small", tmp_path / "unnamed", tmp_path / "other"
    for folder, names, size in ((small, ("000004", "5"), 4), (unnamed, ("a", "b"), 8),
                                (other, ("100", "101"), 8)):  # fmt: skip
        folder.mkdir()
        for name in names:
            (folder / f"{name}.png").write_bytes(png_bytes(np.zeros((1, size, size), np.uint8)))
    out = tmp_path / "a.png"
    for arguments, reason in [
        ((runs / "off", small, "--out", out), "compare images of one size"),
        ((runs / "off", unnamed, "--out", out), "without a seed in their name"),
        ((runs / "off", other, "--out", out), "share no seed"),
        ((runs / "off", tmp_path / "none", "--out", out), "does not exist"),
        ((runs / "off", runs / "on", "--out", tmp_path / "a.jpg"), "must end in .png"),
    ]:
        code, report, error = run(compare, *arguments)
        assert (code, report) == (2, "") and error.startswith("Error: ") and reason in error, error
        assert not out.exists()


# Neighbours


def test_copies_of_training_images_are_counted(runs, tmp_path, monkeypatch):
    """Three digits and one with a touched pixel among generated ones: these are copied, in both
    spaces, and the others are not."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    images, _ = real_images("digits")
    folder = tmp_path / "run"
    folder.mkdir()
    for seed in range(10):
        (folder / f"{seed}.png").write_bytes((runs / "off" / f"{seed:06d}.png").read_bytes())
    for seed, target in ((10, 5), (11, 700), (12, 1500)):
        (folder / f"{seed}.png").write_bytes(png_bytes(images[target].numpy()))
    touched = images[42].numpy().copy()
    touched[0, 0, 0] += 20
    (folder / "13.png").write_bytes(png_bytes(touched))
    training = tmp_path / "train"  # the same as files
    training.mkdir()
    for i in (*range(0, 50), 700, 1500):
        (training / f"{i}.png").write_bytes(png_bytes(images[i].numpy()))
    for train, space in (("digits", "pixels"), ("digits", "digits"), (training, "digits")):
        out = tmp_path / "n.png"
        code, report, error = run(nearest, folder, "--train", train, "--space", space, "--out", out,
                                "--num", 4, "--device", "cpu")  # fmt: skip
        assert code == 0, error
        assert "14 images" in report and "; 4 copied" in report
        assert ("3 equal to one" in report) == (space == "pixels")
        page = read_png(out)
        for i in (5, 700, 1500):  # as generated, and as its neighbour
            assert len(places_of(images[i].numpy(), page)) >= 2
    assert open_images(training).names[-1] == "1500.png"


def test_nearest_refuses_in_one_sentence(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    large = tmp_path / "large"
    large.mkdir()
    for i in range(5):
        (large / f"{i}.png").write_bytes(png_bytes(np.zeros((1, 16, 16), np.uint8)))
    out = tmp_path / "a.png"
    for arguments, reason in [
        ((tmp_path / "none", "--train", "digits"), "does not exist"),
        ((runs / "off", "--train", tmp_path / "none"), "does not exist"),
        ((runs / "off", "--train", large), "compare images of one size, or choose another --space"),
        ((large, "--train", "digits", "--space", "digits"), "digits extractor takes"),
        ((runs / "off", "--train", large, "--k", 6), "holds 5 images, fewer than --k 6"),
    ]:
        code, report, error = run(nearest, *arguments, "--out", out, "--device", "cpu")
        assert (code, report) == (2, "") and error.startswith("Error: ") and reason in error, error
        assert not out.exists()
    assert run(nearest, runs / "off", "--train", "digits", "--out", "a.gif")[0] == 2


@pytest.mark.parametrize(
    ("train", "reason"),
    [("none", "none does not exist"), ("mnist", "mnist has no real images: choose among digits"),
     ("few", "few holds 3 images, fewer than --k 4")],
)  # fmt: skip
def test_the_training_set_is_checked_before_a_network_is_downloaded(
    runs, tmp_path, monkeypatch, train, reason
):
    """26: --train and --k need no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metrics.extractors.load_extractor", lambda *_: pytest.fail("loaded"))
    (tmp_path / "few").mkdir()
    for i in range(3):
        (tmp_path / "few" / f"{i}.png").write_bytes(png_bytes(np.zeros((1, 8, 8), np.uint8)))
    arguments = ("--train", train, "--space", "inception", "--out", "a.png", "--device", "cpu")
    code, _, error = run(nearest, runs / "off", *arguments)
    assert code == 2 and reason in error
