"""torch.compile for networks: fused kernels, and CUDA graphs on a GPU."""

import warnings

import torch
from torch import nn


def check_compiler(device: torch.device) -> None:
    """Compile a small function. Raises ValueError if the device's compiler does not work."""
    try:
        torch.compile(torch.nn.functional.silu, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # missing compiler, Python headers or Triton
        reason = next((line for line in str(error).splitlines() if line.strip()), "unknown reason")
        raise ValueError(
            f"--compile does not work here ({reason.strip().rstrip('.')}): install a C++ compiler "
            "(g++ or clang) and, for CUDA, Triton; or leave out --compile."
        ) from error


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compile the U-Net of a preconditioner at its first call, for fixed shapes.

    The preconditioner itself is a few operations on a small state. On CUDA each call is recorded as
    a graph, which the host launches at once in place of hundreds of kernels.
    """
    core = network.get_submodule("unet" if hasattr(network, "unet") else "model")
    options = {"triton.cudagraphs": device.type == "cuda"}
    if "deterministic" in torch._inductor.list_options():
        options["deterministic"] = True  # kernels chosen by timing may round differently
    # Float32 parts of a network are exact by choice.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    core.compile(dynamic=False, options=options)
