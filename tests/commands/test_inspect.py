"""compare, nearest and trace on odd but valid files: one image, other shapes, names of any kind."""

import os

import numpy as np
import pytest
from click.testing import CliRunner

from erk.analysis import trace_plot
from erk.analysis.trace_plot import COLUMNS, plot_trace
from erk.commands.main import main
from erk.generation.images import png_bytes
from metrics.images import load_images


def erk(*arguments):
    return CliRunner().invoke(main, [os.fspath(one) for one in arguments])


def folder(path, count, shape=(1, 8, 8)):
    """Write random images to a new folder, 0.png and so on, and return it."""
    path.mkdir()
    images = np.random.default_rng(len(path.name)).integers(256, size=(count, *shape), dtype="u1")
    for i, image in enumerate(images):
        (path / f"{i}.png").write_bytes(png_bytes(image))
    return path


def write_trace(path, **changes):
    arrays = {key: np.full((3, 2), 0.5) for key in COLUMNS} | {"sigmas": np.array([3.0, 2, 1])}
    np.savez(path, **(arrays | changes))
    return path


def test_runs_of_one_image_are_looked_at(tmp_path):
    """A sibling of F6: at least two images are needed to measure, not to look."""
    a, b = folder(tmp_path / "a", 1), folder(tmp_path / "bb", 3)
    out = tmp_path / "out.png"
    done = erk("compare", a, b, "--out", out)
    assert done.exit_code == 0 and "1 seeds: difference" in done.stdout, done.output
    done = erk("nearest", a, "--train", b, "--k", "2", "--out", out)
    assert done.exit_code == 0 and done.stdout.startswith("1 images"), done.output
    done = erk("nearest", a, "--train", a, "--k", "2", "--out", out)
    assert done.exit_code == 2 and "fewer than --k 2" in done.stderr


def test_the_median_of_an_even_number_lies_between_two(tmp_path):
    train = folder(tmp_path / "train", 5)
    a = folder(tmp_path / "x", 2)
    done = erk("nearest", a, "--train", train, "--k", "2", "--out", tmp_path / "out.png")
    pixels = [load_images(one)[0].flatten(1).double().numpy() for one in (a, train)]
    nearest = np.linalg.norm(pixels[0][:, None] - pixels[1], axis=2).min(1)
    assert f"nearest {np.median(nearest):.4g} in the median" in done.stdout


def test_pixels_of_other_shapes_are_not_compared(tmp_path):
    """As many values, but no distance: 8x4 and 4x8 pixels gave one silently."""
    first = folder(tmp_path / "a", 3, (1, 4, 8))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 8, 4), np.uint8))
    done = erk("nearest", first, "--train", tmp_path / "b.npz", "--k", "2",
               "--out", tmp_path / "out.png")  # fmt: skip
    assert done.exit_code == 2 and not (tmp_path / "out.png").exists()
    assert "holds images [1, 4, 8] but" in done.stderr and "[1, 8, 4]" in done.stderr


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"$a^b^c$", b"_hidden", b"stiffness", b"\x1b[31m", b"two words"]
)
def test_a_trace_may_have_any_name(tmp_path, name, monkeypatch):
    """M25, F11: names are shown as they are: no formulas, no escape sequences, none left out."""
    path = tmp_path / os.fsdecode(name + b".npz")
    labels = []
    curve = trace_plot._curve
    monkeypatch.setattr(
        trace_plot, "_curve", lambda *a, **style: (labels.append(a[3]), curve(*a, **style))
    )
    monkeypatch.setattr(trace_plot, "png", lambda figure: figure.draw_without_rendering() or b"")
    done = erk("trace", write_trace(path), "--out", tmp_path / "t.png")
    assert done.exit_code == 0, done.output
    assert not labels[0].startswith("_") and labels[0].isprintable()
    assert name != b"$a^b^c$" or labels[0] == r"\$a^b^c\$"


def test_infinite_values_of_a_trace_are_not_drawn(recwarn):
    arrays = {key: np.full((3, 2), 0.5) for key in COLUMNS}
    arrays["stiffness"][1] = np.inf
    image = plot_trace(arrays | {"sigmas": np.array([3.0, 2, 1])})
    assert image.startswith(b"\x89PNG") and not recwarn.list


@pytest.mark.parametrize("w_con", ["inf", "nan", "-1", "1e308"])
def test_a_threshold_is_a_number_that_can_be_drawn(tmp_path, w_con):
    done = erk("trace", write_trace(tmp_path / "a.npz"), "--w-con", w_con,
               "--out", tmp_path / "t.png")  # fmt: skip
    assert done.exit_code == 2 and "--w-con" in done.stderr and not (tmp_path / "t.png").exists()
