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
    beside them. ``device`` None: nothing is measured.
    """

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self.wall = self.waited = 0.0  # from start to stop; of it the time spent for the writer
        self._stretches: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All that the shares are of."""
        begin = self.clock()
        try:
            yield
        finally:
            if self.device is not None and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.wall += self.clock() - begin

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

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """A stretch of the writer's work."""
        begin = self.clock()
        yield
        self._seconds[name] += self.clock() - begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A stretch in which the sampler waits for the writer."""
        begin = self.clock()
        try:
            yield
        finally:
            self.waited += self.clock() - begin

    def seconds(self) -> dict[str, float]:
        """By part, the device's ``idle`` time among them; after ``whole``."""
        found = dict.fromkeys(PARTS, 0.0)
        for name, begin, end in self._stretches:
            found[name] += begin.elapsed_time(end) / 1000 if self._on_cuda() else end - begin
        found["idle"] = self.wall - sum(found.values())
        return found | {name: self._seconds[name] for name in BESIDE}

    def table(self) -> str:
        """Seconds and shares of the wall time, for the screen."""
        found = self.seconds()
        device = [(name, found[name]) for name in (*PARTS, "idle")]
        lines = [*device, ("wall", self.wall), *((name, found[name]) for name in BESIDE)]
        rows = [f"{name:<10}{s:>10.2f}{_share(s, self.wall):>9.1%}" for name, s in lines]
        rows.insert(len(device) + 1, "beside, by the writer:")
        head = f"{'time of':<10}{'seconds':>10}{'share':>9}"
        return "\n".join([head, *rows, f"The sampler waited {self.waited:.2f} s for the writer."])

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


def _share(seconds: float, wall: float) -> float:
    return seconds / wall if wall else 0.0
