"""Devices and torch.distributed. A single process never initializes a process group."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch

TIMEOUT = timedelta(days=7)
"""Maximum wait for the slowest process; torch's default of minutes would abort long runs."""

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class World(NamedTuple):
    """Rank, number of processes and device of this process (rank 0 of 1 without torchrun)."""

    rank: int
    size: int
    device: torch.device


def pick_device(name: str) -> torch.device:
    """Select the device of this process, and make its GPU PyTorch's current one.

    Parameters
    ----------
    name
        "auto", "cpu", "cuda" or "mps". "auto" prefers CUDA, then Apple's MPS, then the CPU. Under
        torchrun each process of a machine uses the GPU with its LOCAL_RANK; under srun alone, its
        SLURM_LOCALID among the visible GPUs.

    Raises
    ------
    ValueError
        If the device is unavailable.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    check_device(name)
    if name != "cuda":
        return torch.device(name)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if "LOCAL_RANK" not in os.environ and "SLURM_LOCALID" in os.environ:
        local = int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} on this machine has no GPU: {torch.cuda.device_count()} are visible; "
            "start at most one process per GPU."
        )
    device = torch.device("cuda", local)
    try:
        torch.cuda.set_device(device)  # before loading: else all processes use memory of GPU 0
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"GPU {local} cannot be used ({reason}); free it.") from error
    return device


def check_device(device: torch.device | str) -> None:
    """Raise ValueError for a name of no device, such as "auto", or one that this machine lacks."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{str(device)[:40]!r} is no device: give cpu, cuda, cuda:N or mps."
        ) from None
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, True):
        raise ValueError(f"device '{device}' is not available on this machine: use the device cpu.")


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, a world of one process.

    Communication uses gloo on every device: messages are small, and gloo reports a dead process at
    once, where nccl would wait. The surviving processes then raise ConnectionError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    _end_with_launcher()
    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield World(torch.distributed.get_rank(), size, device)
    finally:
        torch.distributed.destroy_process_group()


def _end_with_launcher() -> None:
    """Ask Linux to kill this process when torchrun is killed and cannot do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def barrier(world: World) -> None:
    """Block until all processes have called this function."""
    if world.size > 1:
        with _all_alive():
            torch.distributed.barrier()


def broadcast(world: World, value: Any) -> Any:
    """Return the value of rank 0 in every process."""
    if world.size == 1:
        return value
    values = [value]
    with _all_alive():
        torch.distributed.broadcast_object_list(values)
    return values[0]


def gather(world: World, value: Any) -> list[Any]:
    """Return the values of all processes, ordered by rank, in every process."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    with _all_alive():
        torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def _all_alive() -> Iterator[None]:
    """Turn gloo's errors about lost processes into a ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run ended early; see its error message. Finished images are "
            "kept: run the same command again to continue"
        ) from error
