"""What `erk evaluate` and its siblings refuse, and when."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import metrics
from erk.commands.main import main


def test_trivial_mistakes_are_reported_before_torch_is_imported(tmp_path):
    """On a busy machine `erk evaluate` took half a minute to say that a folder does not exist."""
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "two.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    mistakes = [
        ("evaluate --images two.npz --real two.npz", "--protocol is missing"),
        ("evaluate --images two.npz", "--ref is missing"),
        ("evaluate --images no --ref digits", "no does not exist"),
        ("evaluate --images empty --ref digits", "empty holds no images"),
        ("evaluate --images two.npz --paired no --ref digits", "no does not exist"),
        ("evaluate --images two.npz --real empty --protocol edm", "empty holds no images"),
        ("evaluate --images two.npz --ref digits --shard 2/2", "--shard must be I/N"),
        ("make-reference --images empty --dest a.npz", "empty holds no images"),
        ("nearest empty --train digits --out a.png", "empty holds no images"),
        ("compare two.npz no --out a.png", "no does not exist"),
    ]
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom erk.commands.main import main\n"
        f"for words, message in {mistakes}:\n"
        "    done = CliRunner().invoke(main, words.split())\n"
        "    assert done.exit_code == 2 and message in done.stderr, (words, done.output)\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two sets of four images of 8x8 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    for name in ("fake", "real"):
        (tmp_path / name).mkdir()
        for seed in range(4):
            Image.new("L", (8, 8), 60 * seed).save(tmp_path / name / f"{seed}.png")
    return tmp_path


@pytest.mark.parametrize("odd", ["fake", "real"])
@pytest.mark.parametrize("size", ["9x8 grey", "8x8 RGB"])
def test_one_image_of_another_shape_is_named_before_a_network_loads(
    folders, monkeypatch, odd, size
):
    """In `--images`, it was found only after all real images and the ones before it were shown."""
    width, mode = (9, "L") if size == "9x8 grey" else (8, "RGB")
    Image.new(mode, (width, 8)).save(folders / odd / "3.png")
    monkeypatch.setattr("metrics.evaluator.download_weights", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setattr("metrics.options.load_extractor", lambda *_, **__: pytest.fail("loaded"))
    message = f"{odd}/3.png is {size} but the first image is 8x8 grey: resize them"
    for words in (
        ["evaluate", "--images", "fake", "--real", "real", "--protocol", "edm"],
        ["evaluate", "--images", "fake", "--paired", "real", "--ref", "digits"],
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2 and message in done.stderr, done.output
    with pytest.raises(ValueError, match=message):
        metrics.evaluate("fake", "real", "edm")
    words = ["make-reference", "--images", odd, "--dest", "a.npz", "--extractors", "digits"]
    monkeypatch.undo()
    monkeypatch.chdir(folders)
    done = CliRunner().invoke(main, [*words, "--cache", "features"])
    assert done.exit_code == 2 and message in done.stderr and not [*folders.glob("features/*")]


def test_real_images_of_another_size_are_named_before_a_download(folders):
    for seed in range(4):
        Image.new("L", (16, 16)).save(folders / "real" / f"{seed}.png")
    words = ["evaluate", "--images", "fake", "--real", "real", "--protocol", "edm", "--offline"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "fake holds images of 8x8 pixels but real of 16x16" in done.stderr


@pytest.mark.parametrize("broken", ["0.png", "2.png"])
def test_a_broken_image_names_the_option_that_skips_it(folders, broken):
    path = folders / "fake" / broken
    path.write_bytes(path.read_bytes()[:40])
    skip = "delete it or generate it again, or add --skip-corrupt"
    for words, advice in (
        ("evaluate --images fake --ref digits --metrics fd", skip),
        ("make-reference --images fake --dest a.npz --extractors digits", skip),
        ("nearest fake --train digits --out a.png", "delete it or generate it again"),
    ):
        done = CliRunner().invoke(main, words.split())
        assert done.exit_code == 2 and f"fake/{broken} is not a readable image" in done.stderr
        assert done.stderr.endswith(f": {advice}\n"), done.output
    words = "evaluate --images fake --ref digits --metrics fd --skip-corrupt"
    assert CliRunner().invoke(main, words.split()).exit_code == 0
