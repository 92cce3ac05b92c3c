"""Every metric on tensors that claim to lie on CUDA: no operands on two devices, equal values."""

import json
from pathlib import Path

import pytest
import torch
from pretend_cuda import PretendCuda

from erk.runtime.distributed import World
from metrics.chunks import Chunk, ImageBatch
from metrics.distances import (
    fd_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from metrics.evaluation import evaluate_features
from metrics.extractors import Outputs
from metrics.extractors.network import layout_of
from metrics.features import ExtractionPlan, Features, collect
from metrics.measures import Measure
from metrics.nearest import nearest
from metrics.neighbours import density_coverage, precision_recall
from metrics.protocols import Protocol
from metrics.reference_files import Reference
from metrics.statistics import Moments, Statistics, moments_of

ROOT = Path(__file__).parents[2]
RELAID = "fp32, in the other layout"  # of scripts.bench.evaluator
D, N = 6, 40
CLOSE = 1e-6  # relative: root of float64's rounding, which a singular covariance leaves in FD


@pytest.fixture
def cuda():
    with PretendCuda():
        yield


def drawn(seed, n=N, width=D):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + seed


def test_the_pretence_refuses_two_devices(cuda):
    x, y = drawn(0).to("cuda"), drawn(1)
    assert x.device.type == "cuda" and x.cpu().device.type == "cpu"
    assert torch.zeros(3, device="cuda").device.type == "cuda" and x.new_zeros(2).is_cuda
    for wrong in (lambda: x + y, lambda: y[x[:, 0] > 0], lambda: torch.cat([x, y])):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    assert torch.equal((x * 2)[y[:, 0] > 0].cpu(), (drawn(0) * 2)[y[:, 0] > 0])
    x.add_(1)
    assert torch.equal(x.cpu(), drawn(0) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_moments_stay_on_the_gpu_in_float64(cuda, dtype):
    x = drawn(0).to(dtype)
    ours = moments_of(x.to("cuda"))
    assert ours.mean.is_cuda and ours.cov.is_cuda and ours.cov.dtype == torch.float64
    assert torch.equal(ours.cov.cpu(), moments_of(x).cov)
    assert Moments(D).add(x.to("cuda")).mean.device.type == "cpu"


DISTANCES = [
    lambda a, b: frechet_distance(moments_of(a), moments_of(b)),
    lambda a, b: frechet_distance(moments_of(a[:4]), moments_of(b)),  # singular
    lambda a, b: fd_infinity(moments_of(a), b),
    lambda a, b: kernel_distance(real=a, generated=b, subsets=3, subset_size=10),
    lambda a, b: inception_score(a),
    lambda a, b: precision_recall(real=a, generated=b),
    lambda a, b: density_coverage(real=a, generated=b),
    lambda a, b: nearest(a, iter([(0, b)]), 2).distances.flatten().tolist(),
]


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances(cuda, distance):
    a, b = drawn(0), drawn(0) + 0.3 * drawn(1)
    assert distance(a.to("cuda"), b.to("cuda")) == pytest.approx(distance(a, b), rel=CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "width"), [(N, D), (1000, 64)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gpu_measures_what_the_cpu_measures(distance, n, width):
    """Numbers are float64 sums in another order, those of `nearest` float32."""
    a = drawn(0, n, width)
    b = a + 0.3 * drawn(1, n, width)
    assert distance(a.cuda(), b.cuda()) == pytest.approx(distance(a, b), rel=10 * CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_sums_the_moments_of_the_cpu(dtype):
    """In float64: 2000 sums in another order round to 2000 x 1e-16 at most."""
    x = drawn(1, 2000, 256).to(dtype)
    ours, expected = moments_of(x.cuda()), moments_of(x)
    assert ours.cov.is_cuda and ours.cov.dtype == torch.float64
    torch.testing.assert_close(ours.mean.cpu(), expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.cov.cpu(), expected.cov, rtol=1e-12, atol=1e-12)


PROTOCOL = Protocol(
    "all",
    tuple(
        Measure(kind, "any", columns, options)
        for kind, columns, options in [
            ("fd", ("fd",), {}),
            ("fd_infinity", ("fd_infinity",), {}),
            ("is", ("is", "is_std"), {"splits": 2}),
            ("kid", ("kid", "kid_std"), {"subset_size": 10}),
            ("neighbours", ("precision", "recall", "density", "coverage"), {"k": 3}),
            ("accuracy", ("accuracy",), {}),
        ]
    ),
    "this project",
)  # fmt: skip


def evaluated(device):
    """Evaluate every kind of measure, with standard errors."""
    real, generated = drawn(0), drawn(0) + 0.3 * drawn(1)
    features = Features({"any": Outputs(generated, drawn(2))}, torch.arange(N))
    moments = moments_of(real)
    statistics = {"any": Statistics(moments.mean, moments.cov, N, real)}
    reference = Reference("real", "none", statistics)
    labels = torch.arange(N) % D
    return evaluate_features(features, PROTOCOL, reference, labels=labels, groups=4, device=device)


def test_an_evaluation_has_the_values_and_errors_of_the_cpu(cuda):
    check_evaluation()


@pytest.mark.gpu
def test_an_evaluation_on_a_gpu_has_the_values_and_errors_of_the_cpu():
    check_evaluation()


def check_evaluation():
    ours, theirs = evaluated("cuda"), evaluated("cpu")
    assert len(ours.values) == 11 and None not in ours.values.values()
    assert ours.values == pytest.approx(theirs.values, rel=CLOSE)
    assert len(ours.replicates) == 8  # 4 images are too few for fd_infinity
    for column, values in ours.replicates.items():
        assert values == pytest.approx(theirs.replicates[column], rel=CLOSE), column
    assert ours.pairing == theirs.pairing


class Sums:
    """An extractor whose features are on the device of its images."""

    name, feature_dim, sha256, precision = "sums", 3, "none", "fp32"

    def __call__(self, images):
        assert images.is_cuda
        return Outputs(images.float().sum((2, 3)))


def test_batches_of_images_are_moved_once_and_features_come_back(cuda, tmp_path):
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    chunk = Chunk(0, "0" * 64, 5, lambda: ImageBatch(images, torch.arange(5)))
    plan = ExtractionPlan({"sums": Sums()}, {"sums": ("features",)}, None, 2, device="cuda")
    features = collect(plan, lambda *_: [chunk], World(0, 1, torch.device("cuda")), 5)
    assert torch.equal(features.output("sums"), images.float().sum((2, 3)))
    assert not features.output("sums").is_cuda


def test_layouts_are_those_of_the_table():
    assert layout_of("inception", "cpu") == layout_of("vgg16", "cpu") == torch.channels_last
    assert layout_of("vgg16", "cuda:1") == torch.contiguous_format


def test_layouts_are_the_faster_ones_of_the_record():
    """On a GPU as well, as soon as one has measured: then the table follows the record."""
    records = [ROOT / "results/bench/layouts/evaluator.json",
               *ROOT.glob("results/bench/cuda/evaluator/evaluator.json")]  # fmt: skip
    for path in records:
        record = json.loads(path.read_text("utf-8"))
        clock = "times ours" if record["device"].startswith("cuda") else "CPU times ours"
        relaid = {row["what"]: row[clock] for row in record["rows"] if row["code"] == RELAID}
        assert {*relaid} == {"inception", "vgg16"}
        slower = {name: time for name, time in relaid.items() if time < 0.97}
        assert not slower, f"LAYOUTS: {path} has a faster layout of {slower}"
