"""Where the time of a run went, for generate.py --profile."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("network", "VAE", "copy")  # of the device: they follow each other
BESIDE = ("encode", "write")  # of the writer, at the same time


class Profile:
    """Seconds by part. On CUDA the device's own, by events: nothing waits for them.

    The device's parts and ``idle``, the rest, are the wall time together. The writer's parts run
    beside them. ``device`` None: nothing is measured of it.
    """

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self._stretches: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """A stretch by the host's clock: "encode" or "write" of the writer, "waited" for it by the
        sampler, and "wall", all that the shares are of."""
        begin = self.clock()
        try:
            yield
        finally:
            if name == "wall" and self._on_cuda():
                torch.cuda.synchronize(self.device)
            self._seconds[name] += self.clock() - begin

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A stretch of the device's work; what is launched within counts."""
        if self.device is None:
            yield
            return
        begin = self._mark()
        try:
            yield
        finally:
            self._stretches.append((name, begin, self._mark()))

    def seconds(self) -> dict[str, float]:
        """By part, with the device's "idle" time, and by the names of ``host``; at the end."""
        found = dict.fromkeys(PARTS, 0.0)
        for name, begin, end in self._stretches:
            found[name] += begin.elapsed_time(end) / 1000 if self._on_cuda() else end - begin
        told = dict.fromkeys(("wall", *BESIDE, "waited"), 0.0) | self._seconds
        return found | {"idle": told["wall"] - sum(found.values())} | told

    def table(self) -> str:
        """Seconds and shares of the wall time, for the screen."""
        found = self.seconds()
        waited, wall = found.pop("waited"), found["wall"] or 1.0
        rows = [f"{name:<10}{s:>10.2f}{s / wall:>9.1%}" for name, s in found.items()]
        rows.insert(len(rows) - len(BESIDE), "beside, by the writer:")
        head = f"{'time of':<10}{'seconds':>10}{'share':>9}"
        return "\n".join([head, *rows, f"The sampler waited {waited:.2f} s for the writer."])

    def _mark(self) -> Any:
        assert self.device is not None
        if self._on_cuda():
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type == "mps":
            torch.mps.synchronize()
        return self.clock()

    def _on_cuda(self) -> bool:
        return self.device is not None and self.device.type == "cuda"


OFF = Profile()
