"""Dynamic programming picks the levels of the least total cost."""

from itertools import combinations, pairwise

import pytest
import torch

from erk.calibration.levels import euler_costs, shortest_path
from erk.calibration.problem import gaussian
from erk.calibration.solver_error import Reference, fine_levels, reference_rows
from erk.method.settings import Settings

ENDS = (80.0, 0.002)


@pytest.mark.parametrize("gamma", [1.0, 1.15])
def test_the_path_is_the_best_of_all(gamma):
    draw = torch.Generator().manual_seed(0)
    costs = torch.rand(8, 8, generator=draw, dtype=torch.float64)
    costs = torch.where(torch.ones(8, 8).triu(1).bool(), costs, torch.inf)

    def cost(path):
        return sum(gamma**n * costs[i, j] for n, (i, j) in enumerate(pairwise(path)))

    paths = [(0, *middle, 7) for middle in combinations(range(1, 7), 3)]
    assert shortest_path(costs, 4, gamma) == list(min(paths, key=cost))
    with pytest.raises(ValueError, match="8 steps need more nodes than 8"):
        shortest_path(costs, 8)


def test_costs_are_the_errors_of_eulers_steps():
    """On Gaussian data x goes as sqrt(S^2 + sigma^2), so every cost has a closed form."""
    drift, noise = Settings(dtype=torch.float64).drift(gaussian), torch.ones(2, 3).double()
    rows = reference_rows(drift, noise, ENDS, 128)
    nodes, costs = euler_costs([Reference(fine_levels(ENDS, 128), rows)])
    assert nodes[0] == ENDS[0] and nodes[-1] == ENDS[1] and len(nodes) == len(costs) == 65
    radius = (0.25 + nodes**2).sqrt()
    scale = 3**0.5 * ENDS[0] / radius[0]
    j, k = 10, 30
    euler = radius[j] + (nodes[k] - nodes[j]) * nodes[j] / radius[j]
    assert costs[j, k].item() == pytest.approx((scale * (euler - radius[k]).abs()).item(), rel=1e-3)
    assert costs[k, j] == costs[j, j] == torch.inf
