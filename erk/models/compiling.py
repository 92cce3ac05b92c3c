"""torch.compile for networks: when a run is long enough to pay for it, and with which options."""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from erk.io.atomic import write_file
from erk.io.cache import cached_path, find, save_json
from erk.io.download import cache_dir

POLICIES = ("auto", "always", "never")

# Predictions for EDM2-S in float16 on an H100; no GPU has measured them (docs/performance.md).
COMPILATION = 90.0  # seconds, once per process
SAVED_BY_NETWORK = 75e-6  # seconds per evaluation of one image: 13.7 of 29.5 GB are not moved
SAVED_BY_DECODER = 3.5e-3  # seconds per image: a third of the gain, as not all models have a VAE

GRAPHS = 64  # at most, of one function: a process may compile many networks and batch sizes

FOLDER, VERSION = "compilation", 1  # of the records of compile times


def pays(images: int, evaluations: float, device: torch.device) -> bool:
    """Return whether compilation shortens a run, of so many network evaluations per image.

    This depends on the run alone, never on times measured here: compiled networks round otherwise,
    so all processes, shards and repetitions of a run must decide alike.
    """
    saved = images * (evaluations * SAVED_BY_NETWORK + SAVED_BY_DECODER)
    return device.type == "cuda" and saved > COMPILATION


def check_policy(policy: str) -> None:
    """Raise ValueError for a policy that is none of `POLICIES`."""
    if policy not in POLICIES:
        raise ValueError(f"--compile must be {', '.join(POLICIES)}, not '{policy}'.")


def check_compiler(device: torch.device) -> None:
    """Compile a small function. Raises ValueError if the device's compiler does not work."""
    reason = compiler_fault(device)
    if reason is not None:
        raise ValueError(
            f"networks cannot be compiled here ({reason}): install a C++ compiler (g++ or clang) "
            "and, for CUDA, Triton; or give --compile never, and for a run that was begun compiled "
            "another --outdir."
        )


def compiler_fault(device: torch.device) -> str | None:
    """Return why torch.compile does not work on a device: no compiler, Python headers or Triton."""
    _keep_kernels()
    try:
        torch.compile(torch.nn.functional.silu, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "unknown reason")
        return reason.strip().rstrip(".")
    return None


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compile the U-Net of a preconditioner at its first call, for fixed shapes.

    The preconditioner itself is a few operations on a small state. On CUDA each call is recorded as
    a graph, which the host launches at once in place of hundreds of kernels.
    """
    core = network.get_submodule("unet" if hasattr(network, "unet") else "model")
    core.compile(**_options(device))


def compile_function(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compile a function as `compile_network` does.

    On CUDA the next call overwrites the tensors that a call returns.
    """
    return torch.compile(function, **_options(device))


def _options(device: torch.device) -> dict[str, Any]:
    """Return the arguments of torch.compile."""
    _keep_kernels()
    torch._dynamo.config.recompile_limit = GRAPHS  # the ninth of PyTorch's 8 is an error
    options = {"triton.cudagraphs": device.type == "cuda"}
    if "deterministic" in torch._inductor.list_options():
        options["deterministic"] = True  # kernels chosen by timing may round differently
    # Float32 parts of a network are exact by choice.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return {"fullgraph": True, "dynamic": False, "options": options}


def _keep_kernels() -> None:
    """Let Inductor keep compiled kernels in ERK_CACHE, unless the user names another folder."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))


def compilation_key(sha256: str, batch: int, device: torch.device) -> list[Any]:
    """Return what the compile time of a network file, its guide and its decoder depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return [sha256, batch, name, torch.__version__]


def describe_seconds(key: Any) -> str:
    """Say how long compilation takes: as last time on this machine, else as predicted."""
    try:
        return f"{find(key, VERSION, cache_dir() / FOLDER):.0f} s the last time"
    except FileNotFoundError:
        return f"about {COMPILATION:.0f} s on an H100, predicted"


def keep_seconds(key: Any) -> None:
    """Record how long this process has compiled, for `describe_seconds` of later ones."""
    seconds = torch._dynamo.utils.calculate_time_spent()["total_wall_time"]
    if seconds > 0:
        folder = cache_dir() / FOLDER
        with suppress(OSError):  # a cache that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
            write_file(cached_path(key, VERSION, folder), save_json(seconds))
