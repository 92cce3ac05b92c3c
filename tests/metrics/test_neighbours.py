"""Who lies in whose ball: against brute force in float64, torch-fidelity and cases by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from metrics.jackknife import group_of
from metrics.neighbours import density_coverage, membership, precision_recall

SMALL = 20_000  # bytes: blocks of 13 to 20 rows, so that sets and groups are cut everywhere


def two_sets(n=301, m=257, dim=16, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(n, dim, generator=generator, dtype=dtype)
    generated = torch.randn(m, dim, generator=generator, dtype=dtype) * 0.8 + 0.3
    generated[30:50] = generated[:20]  # copies, some of another group
    generated[60:65] = real[7]
    real[100:105] = real[7]
    return real + offset, generated + offset


def brute_force(real, generated, k, strict):
    """precise, inside, recalled, covered by their definitions, in float64."""
    real, generated = real.double(), generated.double()

    def distances(a, b):
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    def radii(points):  # a sample is its own nearest neighbour
        return distances(points, points).sort(1).values[:, k]

    between = distances(generated, real)
    in_real, in_generated = (
        between < r if strict else between <= r for r in (radii(real), radii(generated)[:, None])
    )
    return in_real.any(1), in_real.sum(1), in_generated.any(0), in_real.any(0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 10])
@pytest.mark.parametrize("memory", [SMALL, 2**26])
def test_membership_equals_brute_force_that_removes_each_group(strict, groups, memory):
    real, generated = two_sets()
    result = membership(
        real=real, generated=generated, k=3, strict=strict, groups=groups, memory=memory
    )
    precise, inside, recalled, covered = brute_force(real, generated, 3, strict)
    assert torch.equal(result.precise, precise) and torch.equal(result.inside, inside)
    assert result.recalled.shape == result.covered.shape == (1 + groups if groups > 1 else 1, 301)
    assert torch.equal(result.recalled[0], recalled) and torch.equal(result.covered[0], covered)
    group = group_of(257, groups)
    for g in range(groups if groups > 1 else 0):
        _, _, recalled, covered = brute_force(real, generated[group != g], 3, strict)
        assert torch.equal(result.recalled[1 + g], recalled)
        assert torch.equal(result.covered[1 + g], covered)
    assert 0.1 < result.recalled.double().mean() < 0.9 and 0.1 < precise.double().mean() < 0.99


def test_replicates_equal_the_plain_function_on_what_is_left():
    real, generated = two_sets()
    result = membership(real=real, generated=generated, groups=5)
    group = group_of(257, 5)
    for g in range(5):
        left = group != g
        precision, recall = precision_recall(real=real, generated=generated[left])
        assert result.precise[left].double().mean() == precision
        assert result.recalled[1 + g].double().mean() == recall
    assert len({row.sum().item() for row in result.recalled}) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [SMALL, 2**26])
def test_precision_recall_equal_torch_fidelity(dtype, memory):
    real, generated = two_sets(dtype=dtype)
    for k in (1, 3, 7):
        ours = precision_recall(real=real, generated=generated, k=k, memory=memory)
        theirs = calculate_precision_recall_full(generated, real, k)
        assert 0.05 < ours[0] < 0.95 or 0.05 < ours[1] < 0.95
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_large_common_offset_loses_nothing():
    real, generated = two_sets()
    far = precision_recall(real=real + 64, generated=generated + 64)
    assert far == precision_recall(real=real, generated=generated)


def test_density_and_coverage_by_their_definition():
    real, generated = two_sets()
    _, inside, _, covered = brute_force(real, generated, 5, True)
    expected = inside.double().mean().item() / 5, covered.double().mean().item()
    assert density_coverage(real=real, generated=generated) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "n", "dim"), [(torch.float32, 400, 1024), (torch.float64, 500, 64)]
)
@pytest.mark.parametrize("memory", [2**20, 2**26])
def test_identical_sets_have_density_and_coverage_1(dtype, n, dim, memory):
    """G6: 1.0085 and 1.058 where distances of one pair were rounded in two ways."""
    real = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=dtype).abs()
    same = real[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    assert density_coverage(real=real, generated=same, memory=memory) == (1, 1)


def near_copies(modes, n, dim, noise):
    """Some points with many copies each that differ in about their last bits."""
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(modes, dim, generator=generator) * 10 + 3
    rows = centres[torch.randint(modes, (n,), generator=generator)]
    return rows * (1 + noise * torch.randn(n, dim, generator=generator))


CASES = {
    "near copies": (near_copies(1, 200, 48, 2e-7), near_copies(1, 150, 48, 2e-7)),
    "near copies of modes": (near_copies(4, 200, 48, 1e-5), near_copies(3, 150, 48, 1e-7)),
    "copies of modes": (near_copies(5, 200, 8, 0), near_copies(3, 150, 8, 0)),
    "an outlier far away": (
        torch.cat([torch.full((1, 6), 1e30), near_copies(60, 120, 6, 1e-3)]),
        near_copies(60, 120, 6, 1e-2),
    ),
    "tiny": (near_copies(90, 150, 6, 0.1) * 1e-30, near_copies(90, 150, 6, 0.1) * 1e-30),
    "huge": (near_copies(90, 150, 6, 0.1) * 1e30, near_copies(90, 150, 6, 0.1) * 1e30),
    "constant": (torch.full((40, 5), 0.1), torch.full((30, 5), 0.1)),
    "two constants": (torch.full((40, 5), 0.1), torch.full((30, 5), 0.3)),
    "one dimension": (near_copies(90, 150, 1, 0.1), near_copies(90, 150, 1, 0.1)),
    "a grid": tuple(
        torch.randint(5, (n, 3), generator=torch.Generator().manual_seed(n)).float()
        for n in (90, 80)
    ),
    "half precision": (near_copies(9, 90, 6, 0.1).half(), near_copies(9, 90, 6, 0.1).half()),
    "not contiguous": (near_copies(9, 90, 8, 0.1)[::2, ::2], near_copies(9, 4, 90, 0.1).T[:, :4]),
    "as few as may be": (near_copies(9, 4, 3, 0.1), near_copies(9, 4, 3, 0.1)),
    "zeros of both signs": (torch.tensor([[0.0], [-0.0], [1.0], [2.0]]), torch.zeros(5, 1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("memory", [SMALL, 2**26])
def test_members_are_exact(name, strict, memory):
    """G6 and siblings: what products of float32 cannot tell, and the size of blocks, is nothing."""
    real, generated = CASES[name]
    expected = brute_force(real, generated, 3, strict)
    groups = 2 if len(generated) > 20 else 1
    who = membership(real=real, generated=generated, strict=strict, groups=groups, memory=memory)
    result = who.precise, who.inside, who.recalled[0], who.covered[0]
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    for g in range(groups if groups > 1 else 0):
        left = generated[group_of(len(generated), groups) != g]
        _, _, recalled, covered = brute_force(real, left, 3, strict)
        assert torch.equal(who.recalled[1 + g], recalled)
        assert torch.equal(who.covered[1 + g], covered)


def test_radius_reaches_the_kth_other_sample():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii: 1, 1, 2, 4; k = 3: 7, 6, 4, 7
    inside = membership(real=points, generated=[[-1.0], [-1.1], [5.0], [10.9], [11.1]], k=1).inside
    assert inside.tolist() == [1, 0, 2, 1, 0]
    inside = membership(real=points, generated=[[-7.0], [13.9], [2.0], [14.1]], k=3).inside
    assert inside.tolist() == [1, 1, 4, 0]


def test_a_point_on_the_edge_of_a_ball_is_inside_unless_strict():
    real = np.array([[0.0], [2.0], [10.0], [12.0]])
    generated = [[4.0], [14.5]]
    assert precision_recall(real=real, generated=generated, k=1) == (0.5, 1.0)
    assert precision_recall(real=real, generated=generated, k=1, strict=True) == (0, 1.0)


@pytest.mark.parametrize("memory", [SMALL, 2**26])
def test_mode_collapse_is_precise_but_recalls_little(memory):
    real = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)) + 5
    collapsed = real[:3].repeat(100, 1)
    assert precision_recall(real=real, generated=collapsed, memory=memory) == (1.0, 3 / 400)
    result = precision_recall(real=collapsed, generated=real, memory=memory)
    assert result == (3 / 400, 1.0)


def test_copies_touch_in_float32_far_from_the_centre():
    real = torch.randn(50, 300, generator=torch.Generator().manual_seed(3)) * 100
    copied = real[:1].repeat(20, 1)
    assert precision_recall(real=copied, generated=real)[0] == 1 / 50
    assert precision_recall(real=real, generated=copied) == (1.0, 1 / 50)


def test_caller_keeps_its_arrays_and_its_settings():
    array = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    array.flags.writeable = False
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        membership(real=array, generated=torch.from_numpy(array.copy()).requires_grad_())
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before
    half = torch.from_numpy(array.copy()).half()
    assert precision_recall(real=half, generated=half) == (1, 1)


@pytest.mark.gpu
def test_cuda_finds_the_same_members_with_tf32_allowed():
    """But for ties: products of a GPU round otherwise, and TF32 would change far more."""
    real, generated = two_sets(2000, 1500, 256)
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        result = membership(real=real.cuda(), generated=generated, groups=5)
    finally:
        products.allow_tf32 = before
    expected = membership(real=real, generated=generated, groups=5)
    for a, b in zip(result, expected, strict=True):
        assert (a.cpu() != b).double().mean() < 2e-3


MEASURE = """
import resource, torch
from metrics.neighbours import membership
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
spread = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
more = torch.ones(2**26)  # than the imports needed for a moment: else their peak hides ours
copies = spread[:1].repeat(1500, 1)
for real, generated in ((spread, spread), (copies, copies), (spread, spread * 0.01)):
    before = peak()
    membership(real=real, generated=generated, groups=5, memory=8 * 2**20)
    print(peak() - before)
"""


def test_memory_stays_within_its_bound():
    """4000 x 4000 distances are 61 MiB; in the third case every pair is in a ball. Measured: 13 MiB
    at most with a bound of 8, besides the workspace of the matrix product."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert all(float(extra) < 16 for extra in done.stdout.split()), done.stdout


@pytest.mark.parametrize(
    ("real", "generated", "options", "message"),
    [
        (np.zeros((3, 2)), np.zeros((9, 2)), {}, "real features must be .* N >= 4"),
        (np.zeros((9, 2)), np.zeros((3, 2)), {}, "generated features must be .* N >= 4"),
        (np.zeros(9), np.zeros((9, 2)), {}, "real features must be"),
        (np.zeros((9, 2)), np.zeros((9, 3)), {}, "real features have 2 dimensions"),
        (np.zeros((9, 2)), np.full((9, 2), np.nan), {}, "generated features hold NaN"),
        (np.full((9, 2), 1e308), np.full((9, 2), -1e308), {}, "differ by more than 1e308"),
        (np.zeros((9, 0)), np.zeros((9, 0)), {}, "real features must be"),
        (np.zeros((0, 2)), np.zeros((9, 2)), {}, "real features must be"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"k": 0}, "k must be a whole number of at least 1"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"k": 2.5}, "k must be a whole number"),
        (np.zeros((9, 2)), np.zeros((9, 2)), {"k": 9}, "N >= 10"),
        (
            np.zeros((9, 2)),
            np.zeros((9, 2)),
            {"groups": 10},
            "9 samples cannot be split",
        ),
        (np.zeros((9, 2)), np.zeros((6, 2)), {"groups": 2}, "3 generated samples are left"),
    ],
)
def test_membership_refuses(real, generated, options, message):
    with pytest.raises(ValueError, match=message):
        membership(real=real, generated=generated, **options)


def test_arguments_must_be_named():
    for function in (membership, precision_recall, density_coverage):
        with pytest.raises(TypeError):
            function(np.zeros((9, 2)), np.zeros((9, 2)))
