"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from erk.runtime.memory import fitting, halved, is_out_of_memory

FAULTS = """
import resource, threading, torch
from erk.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**25)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = [faults() for _ in range(4)]
keep_freed_memory()
kept = [faults() for _ in range(30)]  # until free places fit
made = []
thread = threading.Thread(target=lambda: made.append(torch.ones(2**26).sum().item()))
thread.start()
thread.join()
print(min(plain), kept[-1], *made)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_serves_the_next_tensor():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, kept, written = map(float, done.stdout.split())
    assert kept < plain / 20
    assert written == 2**26  # a thread, whose pool is small, gets a large tensor all the same


@pytest.mark.parametrize("message", [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
])  # fmt: skip
def test_signs_of_a_full_gpu(message):
    """cuBLAS, cuDNN 9, and cuDNN's heuristics when no workspace is left."""
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_compiled_networks_forget_the_shapes_that_did_not_fit():
    """Else PyTorch, which keeps 8 shapes of a function, refuses the next one."""
    counter = CompileCounter()  # a backend that counts graphs and does not optimize them
    network = torch.compile(lambda x: x + 1, fullgraph=True, dynamic=False, backend=counter)

    def work(batch):
        result = network(torch.ones(batch, 1))
        if batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    batch = 1024
    with torch._dynamo.config.patch(recompile_limit=8):
        while (result := fitting(work, batch)) is None:
            batch = halved(batch, "sampling")
    assert len(result) == 1 and counter.frame_count == 11
    with pytest.raises(MemoryError, match="sampling does not fit into memory even with a batch of"):
        halved(batch, "sampling")
