"""Runs of `generate` for the tests: the command here or as a process, and what it leaves."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from golden_data import GOLDEN

from erk.commands import generate
from erk.generation.seeds import parse_seeds

ROOT = Path(__file__).parents[1]
NETS = GOLDEN / "nets"
DIGITS = ["--preset", "digits", "--device", "cpu"]
SMALL = [*DIGITS, "--steps", "3", "--batch", "4"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command(arguments):
    """Run generate.py with these arguments, to its exit code, which ends this process."""
    generate.main([str(argument) for argument in arguments], prog_name="generate.py")


def in_this_process(arguments):
    """Run generate.py in this process; it must succeed."""
    done = CliRunner().invoke(generate.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


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


def check_run(folder, other):
    """A complete run has the files of the other, to the byte and no others; its manifest lists
    every seed once, with the hash of its image."""
    present = files(folder)
    assert present == files(other)
    assert not (folder / ".parts").exists()
    stored = record(folder)
    assert stored["complete"] is True and stored["nfe"] > 0
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [line["seed"] for line in listed] == parse_seeds(stored["seeds"])
    assert len(listed) == stored["images"]
    for line, data in zip(listed, _images(folder, present, listed), strict=True):
        assert hashlib.sha256(data).hexdigest() == line["sha256"]


def _images(folder, present, listed):
    """The bytes that the lines of a manifest are about."""
    if "images.zip" in present:
        with zipfile.ZipFile(folder / "images.zip") as archive:
            assert len(archive.namelist()) == len(listed)
            return [archive.read(line["file"]) for line in listed]
    if "images.npz" in present:
        with np.load(folder / "images.npz") as arrays:
            assert arrays["seeds"].tolist() == [line["seed"] for line in listed]
            assert [line["file"] for line in listed] == [f"arr_0[{i}]" for i in range(len(listed))]
            return [row.tobytes() for row in arrays["arr_0"]]
    return [present[line["file"]] for line in listed]


def check_refusal(code, out, err, message):
    assert code == 2, err
    assert err.startswith("Error: ") and message in err, err
    assert len(err.splitlines()) == 1 and out == ""


def complete_runs(factory, job, kinds):
    """Return the folder of complete runs of a job, one per format, that nothing happens to."""
    root = factory.mktemp("undisturbed")
    for kind in kinds:
        in_this_process([*job, "--format", kind, "--outdir", root / kind])
    return root
