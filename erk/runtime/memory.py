"""Memory: what is freed is used again; work that does not fit is done in smaller pieces."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")
SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED",
         "could not create a primitive")  # fmt: skip
"""What PyTorch passes on of MPS, CPU, cuBLAS, cuDNN and oneDNN, where it has no class for it."""


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let what was freed serve the next tensors of this process, and not go back to the system.

    Else every large tensor on a CPU is mapped anew, page by page, which takes a quarter of the time
    of decoding 512 x 512 pictures (docs/performance.md). Of Linux's glibc; nothing elsewhere.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # none


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or Python tells of too little memory, of a device or the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def fitting(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What the work returns; None, with its memory given back, if it did not fit."""
    try:
        return work(*args, **kwargs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # only here is the error, with all that it held, gone
        torch.cuda.empty_cache()
    return None


def halved(batch: int, what: str) -> int:
    """Half of a batch that did not fit; a notice says so. MemoryError if it was a single image."""
    if batch == 1:
        raise MemoryError(
            f"{what} does not fit into the memory, even one image at a time: free some, or take "
            "another --device or a smaller network"
        )
    print(
        f"{what} does not fit into the memory with a batch of {batch}: going on with {batch // 2}, "
        "which changes results by rounding only",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return batch // 2


def load_fitting(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the work returns; MemoryError, with a sentence, if it does not fit."""
    made = fitting(work, *args, **kwargs)
    if made is None:
        raise MemoryError(
            "the networks do not fit into the memory: free some, or take another --device"
        )
    return made


class _NoNumbers(TorchFunctionMode):
    """Random tensors come empty; on the device "meta" even one would take torch seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        if func in (torch.randn, torch.rand):
            func = torch.empty
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks made within take no memory and draw no random numbers: a file gives the weights."""
    with torch.device("meta"), _NoNumbers():
        yield
