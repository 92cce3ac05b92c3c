"""No command replaces what it reads: an output that names an input is refused, bytes unchanged."""

import hashlib
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from erk.commands.main import main
from erk.generation.images import save_images


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two folders of images and an npz of them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(256, size=(4, 1, 8, 8), dtype=np.uint8)
    for folder in ("a", "b"):
        save_images(images, folder)
    np.savez("a.npz", images.transpose(0, 2, 3, 1))
    shutil.make_archive("a", "zip", "a")
    return tmp_path


def hashes(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate --images a.npz --ref digits --json a.npz",
        "evaluate --images a --ref digits --csv a/000001.png",
        "evaluate --images a --ref a.npz --json a.npz",
        "evaluate --images a --paired b --ref digits --json b/000000.png",
        "compare a b --out a/000000.png",
        "compare a b --out both.png --csv b/000002.png",
        "nearest a --train b --out b/000003.png",
        "make-reference --images a.npz --dest a.npz --extractors digits --overwrite",
        "prepare-imagenet --source a.zip --dest a.zip --overwrite",
    ],
)
def test_an_input_is_no_output(files, arguments):
    before = hashes(files)
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2, result.output
    assert "is read by this command: choose another file to write" in result.output
    assert hashes(files) == before


def test_two_outputs_are_two_files(files):
    options = ["--images", "a", "--ref", "digits", "--json", "row", "--csv", "row"]
    result = CliRunner().invoke(main, ["evaluate", *options])
    assert result.exit_code == 2 and "--json and --csv are both row: give two files" in (
        result.output
    )
