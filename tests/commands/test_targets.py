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
    (tmp_path / "a" / "run.json").write_text("{}")
    (tmp_path / "net-0000001-0.050.safetensors").touch()
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
        # siblings of H5, M13: side files, files that other commands read, new images among images
        "compare a b --out both.png --csv a/run.json",
        "compare a b --out a/new.png",
        "nearest a --train b --out b/sub/new.png",
        "trace a/000000.png --out a/000000.png",
        "ema --in net-0000001-0.050.safetensors --std 0.05 --out net-0000001-0.050.safetensors "
        "--overwrite",
    ],
)
def test_an_input_is_no_output(files, arguments):
    before = hashes(files)
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2, result.output
    assert "is read by this command: choose another file to write" in result.output
    assert hashes(files) == before


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("evaluate --images a --ref digits --json row --csv row", "--json and --csv are both row"),
        ("compare a b --out b.png --csv ./b.png", "--out and --csv are both ./b.png"),
        ("generate --preset digits --outdir c --trace c/../c/images.npz",
         "--trace and the archive of the run are both c/images.npz"),
    ],
)  # fmt: skip
def test_two_outputs_are_two_files(files, arguments, options):
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2 and f"{options}: give two files" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("convert edm2-img512-s a.npz/x.safetensors", "a.npz is not a folder"),
        ("convert --all --dest a.npz", "a.npz is not a folder"),
        ("ema --in net-0000001-0.050.safetensors --std 0.05 --out a.npz/x.safetensors",
         "a.npz is not a folder"),
        ("merge a.npz A.NPZ --dest a.zip/b.npz", "a.zip is not a folder"),
        ("merge a b --dest b/sub", "--dest b/sub is one of the sources or in one"),
        ("generate --preset digits --trace a/run.json", "--trace a/run.json must end in .npz"),
    ],
)  # fmt: skip
def test_a_path_is_looked_at_before_anything_is_read(files, monkeypatch, arguments, sentence):
    monkeypatch.setenv("ERK_OFFLINE", "1")
    shutil.copy("a.npz", "A.NPZ")
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2 and sentence in result.output and "Traceback" not in result.output
