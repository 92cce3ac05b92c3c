"""What `erk evaluate` and its siblings refuse, and when."""

import subprocess
import sys

import numpy as np


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
