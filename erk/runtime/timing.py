"""Time of a run by component, for `generate --profile`."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("network", "VAE", "copy")  # of the device, in sequence
WRITER = ("encode", "write")  # in the writer's thread, concurrently


class Timer:
    """Seconds by component; on CUDA measured by events, without synchronization.

    The device's components and ``idle`` add up to the wall time; the writer's run concurrently.

    Parameters
    ----------
    device
        Device whose work is timed; None: it is not.
    clock
        Returns seconds.
    """

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self._intervals: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Time a block by the host's clock.

        `name`: "encode" or "write" in the writer, "waited" (for it) in the sampler, or "wall",
        the total.
        """
        begin = self.clock()
        try:
            yield
        finally:
            if name == "wall" and self._on_cuda():
                torch.cuda.synchronize(self.device)
            self._seconds[name] += self.clock() - begin

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the device's work that is launched inside the block."""
        if self.device is None:
            yield
            return
        begin = self._mark()
        try:
            yield
        finally:
            self._intervals.append((name, begin, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each component, the device's "idle" time and those of `host`."""
        parts = dict.fromkeys(PARTS, 0.0)
        for name, begin, end in self._intervals:
            parts[name] += begin.elapsed_time(end) / 1000 if self._on_cuda() else end - begin
        host = dict.fromkeys(("wall", *WRITER, "waited"), 0.0) | self._seconds
        return parts | {"idle": host["wall"] - sum(parts.values())} | host

    def table(self) -> str:
        """Format seconds and fractions of the wall time as a table."""
        seconds = self.seconds()
        waited, wall = seconds.pop("waited"), seconds["wall"] or 1.0
        rows = [f"{name:<10}{s:>10.2f}{s / wall:>9.1%}" for name, s in seconds.items()]
        rows.insert(len(rows) - len(WRITER), "concurrently, in the writer:")
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


OFF = Timer()
