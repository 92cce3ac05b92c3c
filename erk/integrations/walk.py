"""The sampling loop for callers that evaluate the network themselves, as diffusers' pipelines do.

A solver calls a function for the drift; a pipeline wants to be called with it. `Walk` gives the
pipeline one evaluation at a time: it runs the solver on the evaluations that are known, until the
solver asks for one that is not.
"""

from typing import Any

import torch
from torch import Tensor

from erk.method.guidance import unguided
from erk.method.point import Guidance, Point, Solver
from erk.method.solvers import euler


class _Wanted(Exception):  # noqa: N818, no error
    """The evaluation at (x [B, ...], sigma []) that a solver asks for."""

    def __init__(self, x: Tensor, sigma: Tensor):
        self.x, self.sigma = x, sigma


class Walk:
    """`erk.method.sampler.steps`, one evaluation of the network per call.

    Parameters
    ----------
    solver, guidance
        As in `steps`.
    sigmas
        Noise levels, [N + 1] on the CPU; the first evaluation is at the first of them.
    """

    def __init__(self, solver: Solver, sigmas: Tensor, guidance: Guidance = unguided):
        self.solver, self.sigmas, self.guidance = solver, sigmas, guidance
        self.index = 0  # of the interval
        self._x: Tensor | None = None  # where it starts
        self._wanted = sigmas[0]  # the level of the next evaluation
        self._points: list[Point] = []  # its evaluations
        self._memory: Any = None  # the solver's
        self._kept: Any = None  # the guidance's

    @property
    def is_done(self) -> bool:
        """Whether the last interval is finished."""
        return self.index == len(self.sigmas) - 1

    def __call__(self, point: Point) -> tuple[Tensor, Tensor]:
        """Take an evaluation; return the state [B, ...] to evaluate next and its level [].

        At the end these are the last state and the last level. A state that the caller changed
        between two steps, as pipelines for inpainting do, is what the next step starts from.
        """
        self._points.append(point)
        x = self._x
        if x is None or self._wanted == self.sigmas[self.index]:
            x = point.x
        try:
            while not self.is_done:
                x = self._x = self._interval(x)
        except _Wanted as wanted:
            self._x, self._wanted = x, wanted.sigma
            return wanted.x, wanted.sigma
        return x, self.sigmas[-1]

    def _interval(self, x: Tensor) -> Tensor:
        """Finish an interval from x [B, ...] with the evaluations that are known."""
        known = iter(self._points)

        def drift(x: Tensor, sigma: Tensor) -> Point:
            point = next(known, None)
            if point is None:
                raise _Wanted(x, sigma)
            return point

        sigma, sigma_next = self.sigmas[self.index : self.index + 2]
        if sigma_next == 0:
            step = euler(drift, x, sigma, sigma_next)
            x, kept = step.x, self._kept
        else:
            step = self.solver(drift, x, sigma, sigma_next, self._memory)
            step = step._replace(sigma_next=sigma_next, index=self.index)
            x, kept = self.guidance(step, self._kept)
        self._points, self._memory, self._kept = [], step.memory, kept
        self.index += 1
        return x


def evaluations(solver: Solver, sigmas: Tensor) -> Tensor:
    """Return the noise levels at which a run evaluates the network, in order, [calls]."""
    walk, levels = Walk(solver, sigmas), []
    x, sigma = torch.zeros(1, 1), sigmas[0]
    while not walk.is_done:
        levels.append(sigma)
        x, sigma = walk(Point(x, torch.zeros_like(x), sigma))
    return torch.stack(levels)
