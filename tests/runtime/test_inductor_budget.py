"""Kernels and bytes of compiled networks, from Inductor's code for an H100 that is not there.

Tensors are fake, Triton compiles nothing and nothing runs, so this shows lost fusions and copies of
layouts, but no times. `PYTHONPATH=. python tests/runtime/test_inductor_budget.py` prints the counts
that `inductor_budget.json` records.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from diffusers import AutoencoderKL
from torch._subclasses import FakeTensorMode

from erk.models import edm2, vae
from scripts.bench.counting import Traffic, aten
from scripts.bench.networks import VAE, kwargs_of

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
BUDGET = Path(__file__).with_name("inductor_budget.json")
CASES = {"unet fp16": (64, torch.float16), "vae fp16": (8, torch.float16),
         "vae fp32": (8, torch.float32)}  # fmt: skip
"""Batch and dtype."""
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, warp_size=32,
    total_memory=85 * 10**9, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, gcnArchName="", uuid="", is_integrated=0, pci_bus_id=0,
    pci_device_id=0, pci_domain_id=0, max_clock_rate=1980000, memory_clock_rate=2619000,
    memory_bus_width=5120,
)  # fmt: skip


@pytest.mark.slow
def test_compiled_networks_stay_within_the_budget():
    """The same version of PyTorch generates the same code, others fuse other operations: 15 %.

    1x1 convolutions in place of matrix products cost 6 % more bytes and 41 % more kernels.
    """
    pytest.importorskip("triton")
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip("PyTorch 2.8 asks the driver even for fake tensors")
    budget = json.loads(BUDGET.read_text())
    root = Path(__file__).parents[2]
    run = subprocess.run(  # a new process, because nothing undoes `pretend_h100`
        [sys.executable, __file__], env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    tolerance = 0.01 if counts.pop("torch") == budget.pop("torch") else 0.15
    assert counts == {
        case: {name: pytest.approx(value, rel=tolerance) for name, value in values.items()}
        for case, values in budget.items()
    }


def always(value):
    return lambda *_, **__: value


def pretend_h100():
    """Let PyTorch and Triton believe in a GPU; for the rest of the process."""
    import torch._dynamo.utils
    import torch._inductor.fx_passes.joint_graph
    import torch.utils._triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import compile_fx
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    torch._C._ensureCUDADeviceGuardSet()
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "synchronize": None,
               "get_device_properties": H100, "exchange_device": 0, "maybe_exchange_device": 0,
               "get_raw_stream": 0}  # fmt: skip
    for name, answer in answers.items():
        setattr(CudaInterface, name, staticmethod(always(answer)))
        setattr(torch.cuda, name, always(answer))
    CudaInterface.get_compute_capability = staticmethod(always(90))
    CudaInterface.Worker.get_device_properties = staticmethod(always(H100))
    CudaInterface.Worker.current_device = staticmethod(always(0))
    torch.cuda.get_device_capability = always((9, 0))
    torch.cuda._lazy_init = torch.cuda.random._lazy_init = always(None)
    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = always(0)
    torch._subclasses.fake_tensor.init_gpu_context = always(None)
    torch.utils._triton.has_triton = always(True)
    torch._C._cuda_getCurrentRawStream = always(0)
    compile_fx.preserve_rng_state = torch._dynamo.utils.preserve_rng_state = nullcontext
    torch._inductor.fx_passes.joint_graph.lazy_init = always(None)  # traces patterns on the GPU
    limits = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32,
              "max_num_regs": 65536}  # fmt: skip
    driver.set_active(SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=always(limits)), is_active=always(True),
        get_current_target=always(GPUTarget("cuda", 90, 32)), get_current_device=always(0),
        get_current_stream=always(0), get_device_interface=always(torch.cuda),
        get_active_torch_device=always(torch.device("cuda", 0)),
    ))  # fmt: skip
    edm2.scaled_dot_product_attention, vae.scaled_dot_product_attention = flash, efficient


def flash(*qkv):
    """Compute attention without the choice of a kernel, which asks the driver."""
    return aten._scaled_dot_product_flash_attention(*qkv)[0]


def efficient(*qkv):
    """Compute it for heads wider than 256 channels, as the VAE's is."""
    return aten._scaled_dot_product_efficient_attention(*qkv, None, False)[0]


def build(case, layout):
    """Return a network, the function of it that is compiled, and its inputs, without values."""
    batch, dtype = CASES[case]
    with torch.device("meta"):
        inputs = [torch.empty(batch, 4, 64, 64, dtype=dtype)]
        if case.startswith("vae"):
            decoder = vae.Decoder(AutoencoderKL(**VAE)).eval().requires_grad_(False)
            decoder.to(dtype=dtype, memory_format=layout)
            return decoder, lambda x: vae.pixels_of(decoder, x), inputs
        inputs += [torch.empty(1), torch.empty(batch, 1000)]
    with FAKE, torch.device("cuda"):  # folding depends on the device
        precond = edm2.Precond(**kwargs_of("s")).eval().requires_grad_(False)
        precond.compute_dtype = dtype
        precond.fold()
    return precond.unet, lambda *x: (precond.unet(*x),), inputs


def on_fake_cuda(network, function, inputs):
    """Return a function of its inputs and the network's tensors, and these as fake CUDA tensors."""
    slots = [
        (tensors, name)
        for part in network.modules()
        for tensors in (part._parameters, part._buffers, vars(part))
        for name, x in tensors.items()
        if isinstance(x, torch.Tensor)
    ]

    def of_all(*tensors):
        for (holder, name), x in zip(slots, tensors[len(inputs) :], strict=True):
            holder[name] = x
        return function(*tensors[: len(inputs)])

    with FAKE:
        return of_all, [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            for x in (*inputs, *(holder[name] for holder, name in slots))
        ]


def eager(case):
    """Count operations and bytes without compilation."""
    function, tensors = on_fake_cuda(*build(case, torch.contiguous_format))
    with FAKE, torch.inference_mode(), Traffic() as traffic:
        function(*tensors)
    counts = {f"eager {kind}": count for kind, count in traffic.operations.items()}
    return counts | {f"GB of eager {kind}": n / 1e9 for kind, n in traffic.bytes.items()}


class Generated(Exception):  # noqa: N818
    """Leave the compiler after it has generated the code."""


def compiled(case):
    """Count launches of generated kernels, products, and the bytes that both read and write."""
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.exc import InductorError
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx

    counts, generate = Counter(), GraphLowering.codegen

    def codegen(graph):
        generate(graph)
        for node in graph.scheduler.nodes:
            size = node.get_read_write_buffers_sizes()
            if size:  # others are parts of a result, or of a concatenation
                kind = "products" if node.is_extern() else "kernels"
                counts[kind] += 1
                counts[f"GB of {kind}"] += size / 1e9
        raise Generated

    function, tensors = on_fake_cuda(*build(case, torch.channels_last))
    with FAKE, torch.no_grad(), mock.patch.object(GraphLowering, "codegen", codegen):
        pure = torch.func.functionalize(function, remove="mutations")
        graph = make_fx(pure, decomposition_table=select_decomp_table())(*tensors)
        try:
            with V.set_fake_mode(FAKE):
                compile_fx_inner(graph, tensors, is_inference=True, cudagraphs=False)
        except (Generated, InductorError):
            if not counts:  # it failed before
                raise
    return counts


def main():
    """Print the counts of all cases and the version of PyTorch."""
    pretend_h100()
    torch._inductor.config.deterministic = True
    record = {"torch": torch.__version__.partition("+")[0]}
    for case in CASES:
        counts = eager(case) | compiled(case)
        record[case] = {name: round(value, 3) for name, value in counts.items()}
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
