"""ERK-Guid against plain Heun: how much longer, and how much more memory.

    python -m scripts.bench.guidance                                    # minutes on one core
    python -m scripts.bench.guidance --device cuda --precision fp16 --size s --batch 64 --steps 32

Time has two measures: complete runs in turns, with Heun a second time to show their noise, and the
share of a run that is spent inside the guidance. Memory is the peak of all tensors that PyTorch
holds, beyond the weights.
"""

import functools
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erk.method.point import Step
from erk.method.sampler import solve, steps
from erk.method.settings import Settings
from erk.method.solvers import heun
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import NONE, tf32_only
from scripts.bench import networks
from scripts.bench.networks import BATCH, PRECISION, SIZE, STEPS
from scripts.bench.paired import Row, Setup, bench, in_turns, summary, synchronize


class Peak(TorchDispatchMode):
    """Track the peak bytes of tensors created inside the block; meta tensors count as well."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {id(x.untyped_storage()) for x in tree_leaves(args) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and id(x.untyped_storage()) not in inputs:
                self._count(x.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Return the peak memory of a run beyond the memory in use before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as peak:
        run()
    return peak.most


def sample(network: Any, noise: Tensor, labels: Tensor, settings: Settings, device: str) -> Tensor:
    """Run the sampler once and wait for the device."""
    with torch.inference_mode():
        x = solve(settings.drift(network, labels), noise, settings)
    synchronize(device)
    return x


class HostClock:
    """CPU seconds."""

    def __call__(self) -> float:
        """Return the time of now."""
        return time.process_time()

    def between(self, start: float, end: float) -> float:
        """Return the seconds between two times."""
        return end - start


class DeviceClock:
    """Seconds of a GPU's stream, which the host does not wait for."""

    def __call__(self) -> Any:
        """Return an event that the stream passes now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two events that have passed."""
        seconds: float = start.elapsed_time(end) / 1e3
        return seconds


def share(network: Any, noise: Tensor, labels: Tensor, settings: Settings, device: str) -> float:
    """Return the time inside the guidance relative to all other time of a run."""
    clock: Any = DeviceClock() if device == "cuda" else HostClock()
    spans, guidance = [], settings.correction(settings.sigmas())
    assert guidance is not None

    def timed(step: Step, memory: Any) -> tuple[Tensor, Any]:
        start = clock()
        answer = guidance(step, memory)
        spans.append((start, clock()))
        return answer

    drift, sigmas = settings.drift(network, labels), settings.sigmas()
    start = clock()
    with torch.inference_mode():
        for _ in steps(drift, noise * sigmas[0], sigmas, heun, timed):
            pass
    end = clock()
    synchronize(device)
    inside = sum(clock.between(*span) for span in spans)
    return inside / (clock.between(start, end) - inside)


def compare(setup: Setup, size: str, batch: int, precision: str, steps: int) -> list[Row]:
    """Return three rows: plain Heun, Heun with ERK-Guid, and plain Heun again."""
    device = setup.device
    network = networks.our_network(size, precision, device)
    noise, labels = networks.inputs(network, batch, device)
    plain = Settings(steps=steps)
    guided = replace(plain, w_stiff=1.0, w_con=0.5)
    codes = {
        name: functools.partial(sample, network, noise, labels, settings, device)
        for name, settings in {"ours": plain, "ERK-Guid": guided, "Heun again": plain}.items()
    }
    for code in codes.values():
        code()  # warm-up; allocates the workspace of CUDA's libraries
    memory = {name: peak_bytes(code, device) for name, code in codes.items()}
    shares = [share(network, noise, labels, guided, device) for _ in range(setup.rounds)]
    rows: list[Row] = []
    for name, times in summary(in_turns(codes, setup.rounds)).items():
        row = {"size": size, "batch": batch, "steps": steps, "precision": precision}
        row |= {"code": "Heun" if name == "ours" else name} | times
        row |= {"peak bytes": memory[name], "beyond Heun": memory[name] - memory["ours"],
                "state pair": 2 * noise.numel() * noise.element_size()}  # fmt: skip
        if name == "ERK-Guid":
            row["share in guidance"] = statistics.median(shares)
        rows.append(row)
    return rows


@bench(SIZE, BATCH, PRECISION, STEPS)
def main(setup: Setup, size: str, batch: int, precision: str, steps: int) -> list[Row]:
    """Time what ERK-Guid adds to Heun, and measure its memory."""
    keep_freed_memory()  # as the commands do
    with tf32_only(NONE):  # as erk generate does
        return compare(setup, size, batch, precision, steps)


if __name__ == "__main__":
    main()
