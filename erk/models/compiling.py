"""torch.compile for networks: fused passes over memory, and CUDA graphs on a GPU."""

import torch
from torch import nn


def check_compiler(device: torch.device) -> None:
    """Compile a trifle; ValueError, one sentence, where that does not work on the device."""
    try:
        torch.compile(torch.nn.functional.silu, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # no compiler, no headers of Python, no Triton: each its own error
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason told")
        raise ValueError(
            f"--compile does not work here ({reason.strip().rstrip('.')}): install a C++ compiler "
            "(g++ or clang) and, for CUDA, Triton; or leave out --compile."
        ) from error


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Let the U-Net within a preconditioner be compiled at its first call, for fixed shapes.

    What surrounds the U-Net is a handful of passes over a small state. On CUDA a call is recorded
    as a graph, so that the host issues it at once in place of hundreds of kernels.
    """
    core = network.get_submodule("unet" if hasattr(network, "unet") else "model")
    options = {"triton.cudagraphs": device.type == "cuda"}
    if "deterministic" in torch._inductor.list_options():
        options["deterministic"] = True  # no kernels chosen by timing: they might round otherwise
    core.compile(dynamic=False, options=options)
