"""The nearest training images: exact neighbours of features that float32 products cannot order."""

import pytest
import torch

from metrics import exact_distances
from metrics.nearest import nearest


def blocks_of(real, size):
    """Yield the features of a training set as `feature_blocks` does."""
    return ((i, real[i : i + size]) for i in range(0, len(real), size))


def brute_force(queries, real, k):
    """Return distances and indices of the k nearest by float64 differences."""
    distances = (queries.double()[:, None] - real.double()).square().sum(2).sqrt()
    values, order = distances.sort(dim=1, stable=True)
    return values[:, :k], order[:, :k]


@pytest.mark.parametrize("memory", [exact_distances.LITTLE, 20_000], ids=["block", "tiles"])
def test_the_nearest_are_those_of_brute_force(memory, monkeypatch):
    monkeypatch.setattr(exact_distances, "LITTLE", memory)
    draw = torch.Generator().manual_seed(0)
    queries, real = (torch.randn(n, 5, generator=draw) for n in (20, 100))
    real[37] = queries[3]
    computed = nearest(queries, blocks_of(real, 30), 12)  # the last block has 10
    distances, indices = brute_force(queries, real, 12)
    torch.testing.assert_close(computed.distances, distances)
    assert torch.equal(computed.indices, indices)
    assert computed.distances[3, 0] == 0 and computed.indices[3, 0] == 37
    assert computed.ratios[3] == 0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_large_features_close_together_are_ordered_exactly(size):
    """float32 products of features near 1000 lose distances near 0.001, and their order.

    The blocks hold more candidates that products cannot tell apart than there are neighbours.
    """
    draw = torch.Generator().manual_seed(1)
    real = 1000 + 1e-3 * torch.randn(64, 32, generator=draw)
    queries = 1000 + 1e-3 * torch.randn(10, 32, generator=draw)
    assert not torch.equal(  # what is to be avoided
        (queries.square().sum(1)[:, None] + real.square().sum(1) - 2 * queries @ real.T)
        .topk(3, largest=False).indices, brute_force(queries, real, 3)[1]
    )  # fmt: skip
    computed = nearest(queries, blocks_of(real, size), 3)
    distances, indices = brute_force(queries, real, 3)
    assert torch.equal(computed.indices, indices)
    torch.testing.assert_close(computed.distances, distances, rtol=1e-12, atol=0)


def test_neighbours_whose_float32_distances_are_equal_or_swapped():
    """Distances from 0: 1 + 2e-9 and 1 + 1e-9, both 1 in float32; equal ones keep their order."""
    real = torch.tensor([[1.0, 6.4e-5], [1.0, 4.5e-5], [-1.0, 4.5e-5], [1.0, 0.0]])
    computed = nearest(torch.zeros(1, 2), blocks_of(real, 2), 4)
    assert computed.indices.tolist() == [[3, 1, 2, 0]]
    assert computed.distances[0, 1] == computed.distances[0, 2] > 1


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_units_do_not_matter(scale):
    """Squares in float32 would vanish or overflow."""
    draw = torch.Generator().manual_seed(2)
    queries, real = (torch.randn(n, 4, generator=draw) * scale for n in (5, 20))
    computed = nearest(queries, blocks_of(real, 8), 2)
    distances, indices = brute_force(queries, real, 2)
    assert torch.equal(computed.indices, indices)
    torch.testing.assert_close(computed.distances, distances, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("k", "message"),
    [(0, "k must be a whole number of at least 1, not 0"), (1.5, "at least 1, not 1.5")],
)
def test_a_number_of_neighbours_that_is_none(k, message):
    """J: an IndexError of 0, a TypeError of 1.5."""
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(2, 3), blocks_of(torch.ones(4, 3), 2), k)
