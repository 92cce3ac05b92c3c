"""Noise levels chosen along reference paths with dynamic programming, as GITS does.

GITS (Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling",
arXiv:2405.11326) takes the levels, of a fine grid, between which Euler's steps leave the reference
path least: cost(j, k) is the distance of Euler's answer from x_j to x_k, the cost of a later step
is multiplied by gamma. It needs no network evaluation beyond the reference paths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from erk.calibration.solver_error import Reference
from erk.method.point import to_double

GAMMAS = (1.0, 1.15)  # the plain sum, and the value of GITS
STRIDE = 2  # of the fine levels, one in so many is a node


def euler_costs(references: Sequence[Reference]) -> tuple[Tensor, Tensor]:
    """Return the nodes [M] and the mean distance of Euler's step from node j to k, [M, M] float64.

    It is infinite unless k > j.
    """
    last = len(references[0].levels) - 1
    nodes = sorted({*range(0, last, STRIDE), last})
    levels = references[0].levels[nodes]
    costs = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    count = 0
    for reference in references:
        points = [reference.point(i) for i in nodes]
        x = torch.stack([to_double(point.x) for point in points])
        f = torch.stack([to_double(point.f) for point in points])
        count += x.shape[1]
        for j in range(len(nodes) - 1):
            h = (levels[j + 1 :] - levels[j]).reshape(-1, *[1] * (x.ndim - 1))
            miss = x[j + 1 :] - x[j] - h * f[j]
            costs[j, j + 1 :] += miss.flatten(2).norm(dim=2).sum(1)
    later = torch.ones_like(costs).triu(1).bool()
    costs = torch.where(later, costs / count, torch.inf)
    return references[0].levels[nodes], costs


def shortest_path(costs: Tensor, steps: int, gamma: float = 1.0) -> list[int]:
    """Return the nodes 0 = i_0 < ... < i_steps = M - 1 of the least cost, [steps + 1].

    The cost of a path is sum_n gamma^n costs[i_n, i_(n+1)]; costs are [M, M]. Raises ValueError
    where there are more steps than nodes.
    """
    last = len(costs) - 1
    if steps > last:
        raise ValueError(f"{steps} steps need more nodes than {last + 1}.")
    value = torch.full((last + 1,), torch.inf, dtype=costs.dtype)
    value[last] = 0.0
    following = []
    for _ in range(steps):
        value, following_node = (costs + gamma * value).min(1)
        following.append(following_node)
    path = [0]
    for nodes in reversed(following):
        path.append(int(nodes[path[-1]]))
    return path
