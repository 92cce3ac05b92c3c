"""The distance to the converged solution: on Gaussian data it is known."""

import pytest
import torch

from erk.generation.job import Job
from erk.method.settings import Settings
from erk.runtime.distributed import World
from scripts.paper import distance


class Gaussian:
    """D(x; sigma) of data of standard deviation 0.5, with what a job asks of a model."""

    sample_shape, label_dim, device, sha256 = (1, 2, 2), 0, torch.device("cpu"), "gaussian"
    sigma_min, sigma_max = 0.0, float("inf")

    def __call__(self, x, sigma, labels):
        return x * 0.25 / (0.25 + sigma**2)


def job(**settings):
    identity = {"labels": "random", "class": None, "noise": "cpu", "precision": "fp32"}
    settings = Settings(schedule="polynomial", **settings)
    return Job(Gaussian(), settings, seeds=range(100), batch=7, identity=identity)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    return tmp_path / "converged"


def exact_scale():
    """x(sigma) = x(80) sqrt((0.25 + sigma^2) / (0.25 + 80^2)), at sigma 0.002."""
    return 80 * ((0.25 + 0.002**2) / (0.25 + 80**2)) ** 0.5


def test_the_distance_of_euler_is_that_of_the_closed_form(cache):
    one = job(solver="euler", steps=8)
    scale = 80.0
    for sigma, after in torch.stack([one.settings.sigmas()[:-1], one.settings.sigmas()[1:]], 1):
        scale *= float(1 + (after - sigma) * sigma / (0.25 + sigma**2))
    noise = torch.stack([torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(seed))
                         for seed in range(100)])  # fmt: skip
    expected = abs(scale - exact_scale()) * noise.flatten(1).norm(dim=1).mean()
    found = distance.measure(one, World(0, 1, torch.device("cpu")))
    assert found["distance"] == pytest.approx(float(expected), rel=1e-3) and expected > 0.1
    assert len(found["replicates"]) == 10 and 0 < found["distance_se"] < found["distance"] / 5
    assert len(list(cache.iterdir())) == 2  # batches of 64 and 36 seeds


def test_rows_share_converged_solutions(cache, monkeypatch):
    distance.measure(job(solver="euler", steps=8), World(0, 1, torch.device("cpu")))
    monkeypatch.setattr(distance, "converged", None)
    heun = distance.measure(job(solver="heun", steps=16), World(0, 1, torch.device("cpu")))
    assert 0 < heun["distance"] < 0.1


def test_the_error_is_that_of_blocks_of_seeds():
    values = torch.arange(20, dtype=torch.float64)
    found = distance.summary(values)
    means = values.reshape(10, 2).mean(1)
    assert found["distance"] == 9.5
    assert found["distance_se"] == pytest.approx((means.var() / 10).sqrt().item())
    assert distance.summary(values[:19]) == {
        "distance": 9.0, "distance_se": None, "replicates": []
    }  # fmt: skip
