"""Runs of `generate` for the tests: the command as a process, and what it leaves in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

from golden_data import GOLDEN

ROOT = Path(__file__).parents[1]
NETS = GOLDEN / "nets"
DIGITS = ["--preset", "digits", "--device", "cpu"]
SMALL = [*DIGITS, "--steps", "3", "--batch", "4"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def start(folder, *arguments, ranks=1):
    """The command as a new process in `folder`, itself or under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks > 1 else []), ROOT / "generate.py", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=ONE_THREAD, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def files(folder):
    """Relative name -> bytes of every file but run.json and the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "manifest.jsonl")
    }


def record(folder):
    return json.loads((folder / "run.json").read_text())


def check_refusal(code, out, err, message):
    assert code == 2, err
    assert err.startswith("Error: ") and message in err, err
    assert len(err.splitlines()) == 1 and out == ""
