"""Compiled networks: when they pay, what records them, and that they round otherwise only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from erk.models import compiling
from erk.models.compiling import compilation_key, describe_seconds, keep_seconds, pays
from erk.models.model import load_model

ROOT = Path(__file__).parents[2]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(("images", "evaluations", "expected"), [
    (50_000, 63, True),  # 50 000 (63 x 75 us + 3.5 ms) = 411 s
    (50_000, 9, True),  # 209 s
    (11_000, 63, True),  # 90.5 s
    (10_900, 63, False),  # 89.7 s
    (1_000, 63, False),
])  # fmt: skip
def test_a_run_pays_for_compilation_if_it_saves_90_seconds(images, evaluations, expected):
    assert pays(images, evaluations, CUDA) == expected
    assert not pays(images, evaluations, CPU)


def test_no_compiler_is_reported_in_one_sentence(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("\nno C++ compiler found.\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError) as error:
        load_model("digits", compiled=True)
    assert str(error.value) == (
        "networks cannot be compiled here (no C++ compiler found): install a C++ compiler (g++ or "
        "clang) and, for CUDA, Triton; or give --compile never, and for a run that was begun "
        "compiled another --outdir."
    )


@pytest.mark.slow
def test_a_missing_compiler_ends_generate_with_that_sentence(tmp_path):
    env = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "generate.py", "--preset", "digits", "--compile", "always", "--outdir",
         str(tmp_path / "out")], cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "networks cannot be compiled here" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_last_compile_time_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    key = compilation_key("abc", 64, CPU)
    assert describe_seconds(key) == "about 90 s on an H100, predicted"
    for seconds in (75.2, 21.7):  # kernels are in the cache the second time
        time = {"total_wall_time": seconds}
        monkeypatch.setattr(torch._dynamo.utils, "calculate_time_spent", time.copy)
        keep_seconds(key)
        assert describe_seconds(key) == f"{seconds:.0f} s the last time"
    assert "predicted" in describe_seconds(compilation_key("abc", 32, CPU))


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_kernels_are_kept_in_the_cache_unless_the_user_names_a_folder(
    chosen, tmp_path, monkeypatch
):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if chosen is not None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / chosen))
    compiling.compile_function(torch.sin, CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / (chosen or "inductor"))


def test_a_process_compiles_more_than_eight_networks(monkeypatch):
    """Each network and batch size is a graph of the same function, of which Dynamo allows eight."""
    options = compiling._options(CPU)
    del options["options"]  # of Inductor
    monkeypatch.setattr(compiling, "_options", lambda device: options | {"backend": "eager"})
    compiled = compiling.compile_function(lambda x: x + 1, CPU)
    for n in range(1, 11):
        assert compiled(torch.zeros(n)).shape == (n,)


@pytest.fixture
def compiler():
    fault = compiling.compiler_fault(CPU)
    if fault is not None:
        pytest.skip(fault)


@pytest.mark.slow
def test_compiled_networks_round_otherwise_and_no_more(compiler):
    """Also with a last batch that is not full: it is padded, so nothing compiles twice."""
    from torch._dynamo.utils import counters

    from erk.generation.job import Job
    from erk.generation.sampling import generate
    from erk.method.settings import Settings

    plain, fast = load_model("digits"), load_model("digits", compiled=True)
    counters.clear()
    images = [
        torch.cat([batch.wait() for batch in generate(job)]).int()
        for job in (Job(m, Settings(steps=4), seeds=range(6), batch=4) for m in (plain, fast))
    ]
    assert counters["stats"]["unique_graphs"] == 1
    assert (images[0] - images[1]).abs().max() <= 2
