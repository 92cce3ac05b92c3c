"""Memory runs out while generate.py works: smaller batches, or a clear end."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command_runs import check_run, command
from injection import JOB, check_refused
from processes import ended, start

import erk
import erk.generation.options
from erk.commands.generate import main
from metrics.extractors import classifier


def too_large(limit, error):
    """Return a network class that takes at most ``limit`` images at a time."""
    original = erk.generation.options.load_model

    class Small:
        def __init__(self, *arguments, **named):
            self.model = original(*arguments, **named)

        def __getattr__(self, name):
            return getattr(self.model, name)

        def __call__(self, x, *arguments):
            if len(x) > limit:
                raise error
            return self.model(x, *arguments)

    return Small


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(error, generate, monkeypatch):
    """Twice, from 8 to 2: the bytes are those of a run with --batch 2; run.json lists the sizes."""
    job = [*JOB, "--batch", "8"]
    assert generate(*JOB, "--batch", "2", "--outdir", "two").exit_code == 0
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(3, error))
    done = generate(*job)
    assert done.exit_code == 0
    for large, small in ((8, 4), (4, 2)):
        assert f"with a batch of {large}: continuing with {small}," in done.stderr
    assert "batch sizes: 20 at 2; images of other batch sizes are rounded" in done.stdout
    check_run(Path("out"), Path("two"))
    record = json.loads(Path("out/run.json").read_text())
    assert record["batch"] == 8 and record["batches"] == {"2": 20}
    assert "batches" not in json.loads(Path("two/run.json").read_text())


def test_memory_that_will_not_suffice_is_known_before(generate, monkeypatch):
    """J6: a CPU's allocations succeed, and the system ends the process when it uses them."""
    assert generate(*JOB, "--batch", "2", "--outdir", "two").exit_code == 0
    network = erk.load_model("digits").network
    image = max(getattr(module, "image_bytes", 0) for module in network.modules())
    monkeypatch.setattr("erk.models.model.free_memory", lambda: 3 * image)
    done = generate(*JOB, "--batch", "8")
    assert done.exit_code == 0, done.output
    assert "with a batch of 4: continuing with 2," in done.stderr
    check_run(Path("out"), Path("two"))
    monkeypatch.setattr("erk.models.model.free_memory", lambda: image - 1)
    refused = generate(*JOB, "--outdir", "none")
    check_refused(refused, "even with a batch of 1: free memory, or use another")
    assert not Path("none").exists()


def test_not_even_one_image_fits(generate, monkeypatch):
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(0, MEMORY_ERRORS[0]))
    check_refused(generate(*JOB), "even with a batch of 1: free memory, or use another")
    assert os.listdir() == []


def test_the_network_does_not_fit(generate, monkeypatch):
    def failing(*_, **__):
        raise MEMORY_ERRORS[0]

    monkeypatch.setattr(erk.generation.options, "load_model", failing)
    check_refused(generate(*JOB), "the networks do not fit into memory")


def test_other_errors_are_not_taken_for_a_lack_of_memory(generate, monkeypatch):
    mistake = too_large(0, RuntimeError("a mistake"))
    monkeypatch.setattr(erk.generation.options, "load_model", mistake)
    with pytest.raises(RuntimeError, match="a mistake"):
        CliRunner().invoke(main, JOB, catch_exceptions=False)


def test_a_streamed_measurement_halves_its_batches(generate, monkeypatch):
    """Sampling and measuring separately; the numbers are those of half the batch."""
    monkeypatch.setenv("ERK_CACHE", str(Path("cache").absolute()))
    measure = [*JOB, "--evaluate", "digits", "--json", "row.json"]
    monkeypatch.setattr(erk.generation.options, "load_model", too_large(2, MEMORY_ERRORS[0]))
    original = classifier.ClassifierExtractor.__call__

    def small(self, images):
        if len(images) == 4:
            raise MEMORY_ERRORS[0]
        return original(self, images)

    monkeypatch.setattr(classifier.ClassifierExtractor, "__call__", small)
    done = generate(*measure, "--batch", "4")
    assert done.exit_code == 0, done.output
    assert "sampling does not fit" in done.stderr and "measuring with digits" in done.stderr
    halved = json.loads(Path("row.json").read_text())
    assert halved["batches"] == {"2": 20}
    assert generate(*measure, "--batch", "2").exit_code == 0
    row = json.loads(Path("row.json").read_text())
    assert halved["fd"] == pytest.approx(row["fd"], rel=1e-6) and "batches" not in row


def with_little_memory(arguments):
    """Run the command with 1/4 GiB for all that it allocates after the network."""
    original = erk.generation.options.load_model

    def limited(*given, **named):
        model = original(*given, **named)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erk.generation.options, "load_model", limited)
        command(arguments)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
def test_the_memory_really_is_short(tmp_path):
    log, job = tmp_path / "log", [*JOB[:-2], "--seeds", "0-3", "--batch", "8192"]
    assert ended(start(with_little_memory, job, cwd=tmp_path, log=log)) == 0, log.read_text()
    assert "does not fit into memory with a batch of 8192: continuing with 4" in log.read_text()
    batches = json.loads((tmp_path / "out" / "run.json").read_text())["batches"]
    assert sum(batches.values()) == 4 and max(map(int, batches)) < 8192
