"""The recipes of docs/scale.md, with digits and two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import blocks

SEEDS = range(20)


@pytest.mark.slow
def test_torchrun_and_an_array_give_the_same_bytes(tmp_path):
    (script,) = [text for language, text in blocks("docs/scale.md") if language == "bash"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "ERK_OFFLINE": "1"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / "out" / name).glob("0*.png")}
        for name in ("torchrun", "array")
    )
    assert sorted(first) == [f"{seed:06d}.png" for seed in SEEDS] and first == second
