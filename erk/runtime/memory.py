"""Memory: reuse of freed memory, recovery from out-of-memory errors, networks without weights."""

import ctypes
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")
MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED",
            "ALLOCATION_FAILED", "unable to find an engine to execute",
            "could not create a primitive", "bad_alloc")  # fmt: skip
"""Messages of MPS, CPU, cuBLAS, cuDNN and oneDNN errors that PyTorch raises as RuntimeError."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the OS; no-op elsewhere.

    Otherwise large CPU tensors refault every page, which takes a quarter of the time of decoding
    512 x 512 images (docs/performance.md).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # none


def free_memory() -> float:
    """Return the bytes that the host can give to this process; infinity where it does not say."""
    with suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("utf-8"))
        return int(match[1]) * 1024 if match else math.inf
    return math.inf


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in MESSAGES)


def fitting(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Call a function; return None and free its memory if it runs out of memory."""
    try:
        return work(*args, **kwargs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside `except`: the error no longer holds its tensors
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # compiled graphs keep the memory of their shapes
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def halved(batch: int, what: str) -> int:
    """Halve a batch size that did not fit, with a notice. Raises MemoryError for a single image."""
    if batch == 1:
        raise MemoryError(
            f"{what} does not fit into memory even with a batch of 1: free memory, or use another "
            "--device or a smaller network"
        )
    print(
        f"{what} does not fit into memory with a batch of {batch}: continuing with {batch // 2}, "
        "which changes results by rounding only",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return batch // 2


def load_fitting(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that loads networks. Raises MemoryError if they do not fit."""
    result = fitting(work, *args, **kwargs)
    if result is None:
        raise MemoryError("the networks do not fit into memory: free some, or use another --device")
    return result


class _EmptyRandom(TorchFunctionMode):
    """Leave random tensors empty: on the device "meta" drawing one takes torch seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        if func in (torch.randn, torch.rand):
            func = torch.empty
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Construct networks without memory or random numbers; a file provides their weights."""
    with torch.device("meta"), _EmptyRandom():
        yield
