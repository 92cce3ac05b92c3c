"""torch.distributed in a few functions: one process needs none of it, and gets none of it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the others; torch's own minutes would end long runs."""


PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class World(NamedTuple):
    """This process's place among those that torchrun started (1 process: rank 0 of 1)."""

    rank: int
    size: int
    device: torch.device


def pick_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'mps' -> this process's device; ValueError if it is not there.

    'auto' takes CUDA, then Apple's MPS, then the CPU. Under torchrun every process on a machine
    gets its own GPU, by LOCAL_RANK; under srun alone by SLURM_LOCALID among those that it sees.
    That GPU becomes PyTorch's current one.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise ValueError(f"this machine offers no device '{name}'; use --device cpu.")
    if name != "cuda":
        return torch.device(name)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if "LOCAL_RANK" not in os.environ and "SLURM_LOCALID" in os.environ:
        local = int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} on this machine has no GPU of its own: there are "
            f"{torch.cuda.device_count()}; start at most as many processes."
        )
    device = torch.device("cuda", local)
    try:
        torch.cuda.set_device(device)  # before anything is loaded: else GPU 0 has a context of all
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"GPU {local} cannot be used ({reason}); free it.") from error
    return device


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, alone without one.

    They speak by gloo on every device: what they tell each other is small, and gloo notices at
    once when a process has died, where nccl would wait. Whoever then waits for it gets a
    ConnectionError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    _end_with_launcher()
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World(torch.distributed.get_rank(), size, device)
    finally:
        torch.distributed.destroy_process_group()


def _end_with_launcher() -> None:
    """Linux ends this process when torchrun is killed by force and cannot do it itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait(world: World) -> None:
    """Every process gets here before any goes on."""
    if world.size > 1:
        with _all_alive():
            torch.distributed.barrier()


def from_first(world: World, value: Any) -> Any:
    """The value that the first process has, in every process."""
    if world.size == 1:
        return value
    held = [value]
    with _all_alive():
        torch.distributed.broadcast_object_list(held)
    return held[0]


def gather(world: World, value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    with _all_alive():
        torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def _all_alive() -> Iterator[None]:
    """ConnectionError, with a sentence, where gloo reports a lost process."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this job has ended before its time; its own message says why. "
            "What is made is kept: run the same command again to go on"
        ) from error
