"""The image of the README: from the records of the story, and digits of the same noise."""

import io
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from scripts.paper.config import ROOT
from scripts.paper.cover import NAMES, TITLES, draw, main
from scripts.paper.story import curves_of, read_story


def test_the_curves_are_those_of_the_story():
    plot = read_story().plot
    curves = curves_of(plot, ROOT / "results")
    assert len(curves) == len(NAMES) and TITLES.keys() == plot.panels.keys()
    for rows in curves.values():
        assert [row["nfe"] for row in rows] == sorted({row["nfe"] for row in rows})
        assert all(row[f"{key}_se"] > 0 for row in rows for key in TITLES)
    images = {name: np.zeros((2, 28, 28), np.uint8) for name in ("plain", "auto", "converged")}
    with Image.open(io.BytesIO(draw([*curves.values()], images))) as image:
        assert image.width > 3 * image.height > 1000


@pytest.mark.slow
def test_the_committed_image_is_that_of_the_command(tmp_path):
    shutil.copy(ROOT / "results/comparison.json", tmp_path)
    done = CliRunner().invoke(main, ["--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    images = [Image.open(folder / "cover.png") for folder in (tmp_path, ROOT / "results")]
    a, b = (np.asarray(image.convert("L"), dtype=float) for image in images)
    assert a.shape == b.shape and np.abs(a - b).mean() < 2  # digits may round differently
