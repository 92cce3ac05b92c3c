"""Solvers of dx/dsigma = f(x; sigma): one step each, pure functions that know no guidance.

A solver takes (drift, x, sigma, sigma_next, memory) and returns a `Step`. Beside its answer it
reports the pair that ERK-Guid uses: the second point whose drift it already knows (`twin`) and
the signed step `h` (Table 9). A solver that never offers a pair is absent from `PAIRED`.
The step to sigma = 0 is Euler's for all of them; the sampler's loop sees to that.
"""

from typing import Any

from torch import Tensor

from .point import Drift, Solver, Step


def euler(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any = None) -> Step:
    """Euler's method (DDIM in sigma): order 1, 1 evaluation. At sigma_next = 0, x becomes D."""
    start = drift(x, sigma)
    return Step(x + (sigma_next - sigma) * start.f, start)  # Eq. 3


def heun(drift: Drift, x: Tensor, sigma: Tensor, sigma_next: Tensor, memory: Any = None) -> Step:
    """Heun's method (EDM's sampler): order 2, 2 evaluations.

    The pair at x_i is the Euler solution of the PREVIOUS step, known at the same sigma_i.
    """
    first = euler(drift, x, sigma, sigma_next)
    end = drift(first.x, sigma_next)
    x_next = x + (sigma_next - sigma) * (0.5 * first.start.f + 0.5 * end.f)  # Eq. 5
    return Step(x_next, first.start, twin=memory, h=sigma - sigma_next, memory=end)


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}
PAIRED = frozenset({"heun"})
"""Solvers that offer ERK-Guid a pair."""


def make_solver(name: str, options: dict[str, Any] | None = None) -> Solver:
    """The solver called `name`. ValueError for an unknown name or an option it does not take."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver '{name}'; choose one of {', '.join(SOLVERS)}.")
    if options:
        raise ValueError(f"the solver '{name}' takes no options, but got {', '.join(options)}.")
    return SOLVERS[name]
