"""The distance of a row's samples to the converged solution from the same noise.

Only the first seeds of a row are sampled for it, before decoding. Converged solutions are kept in
the cache: all rows with the same networks, guidance, labels and noise levels at the ends share
them, whatever their solvers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from erk.calibration.solver_error import converged, ends
from erk.generation.job import Job, computation
from erk.generation.sampling import draw_inputs
from erk.io.cache import cached
from erk.io.download import cache_dir
from erk.method.point import norm, to_double
from erk.method.sampler import solve
from erk.runtime.distributed import World, gather
from metrics.evaluation import GROUPS
from metrics.jackknife import group_of, replicated, standard_error

VERSION = 1
"""Version of the distance: raise it when its numbers change for the same samples."""
SEEDS = 256  # of a row, at most
BATCH = 64  # samples at a time, whatever the number of processes
EVALUATIONS = 256  # on the path of a converged solution


def identity() -> list[int]:
    """Return all that a distance depends on beside the row."""
    return [VERSION, SEEDS, BATCH, EVALUATIONS]


def measure(job: Job, world: World) -> dict[str, Any]:
    """Return ``distance``, its standard error and its replicates, on every process."""
    seeds = job.seeds[:SEEDS]
    batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    mine = [_distances(job, batch).tolist() for batch in batches[world.rank :: world.size]]
    parts = gather(world, mine)
    values = [one for i in range(len(batches)) for one in parts[i % world.size][i // world.size]]
    return summary(torch.tensor(values, dtype=torch.float64))


def summary(values: Tensor) -> dict[str, Any]:
    """Return the mean of distances [n], its jackknife error and the means without each group."""
    n = len(values)
    groups = group_of(n, GROUPS if n >= 2 * GROUPS else 1)
    mean, without = replicated(groups, lambda kept: values[kept].mean().item())
    return {"distance": mean, "distance_se": standard_error(without), "replicates": without}


@torch.inference_mode()
def _distances(job: Job, seeds: Sequence[int]) -> Tensor:
    """Return the distance of each sample, [B] float64."""
    inputs = draw_inputs(job.model, seeds, job.labels, job.noise_device)
    exact = _converged(job, seeds, inputs.noise, inputs.labels)
    drift = job.settings.drift(job.model, inputs.labels, job.guide)
    x0 = solve(drift, inputs.noise, job.settings, inputs.source.randn_like)
    return to_double(norm(x0 - exact).flatten()).cpu()


def _converged(job: Job, seeds: Sequence[int], noise: Tensor, labels: Tensor | None) -> Tensor:
    """Return the converged solutions of seeds, [B, ...], from the cache where they are there."""
    settings = job.settings
    rule = [settings.apg_eta, settings.apg_threshold] if settings.guidance_kind == "apg" else []
    key = [
        "converged solutions",
        [job.model.sha256, job.guide and job.guide.sha256],
        [settings.guidance, settings.guidance_interval, str(settings.dtype), *rule],
        ends(settings.sigmas(job.model)).tolist(),
        [list(seeds), job.identity["labels"], job.identity["class"], job.identity["noise"]],
        [job.identity["precision"], EVALUATIONS, computation()],
    ]

    def make() -> dict[str, Tensor]:
        end = converged(settings, job.model, noise, labels, job.guide, EVALUATIONS)
        return {"x0": end.contiguous().cpu()}

    kept = cached(key, VERSION, make, cache_dir() / "converged", load=load_file, save=save,
                  suffix=".safetensors")  # fmt: skip
    return kept["x0"].to(noise.device)
