"""Difference of images between devices, precisions and batch sizes, in grey levels.

    python -m scripts.bench.precision     # minutes on one core; CUDA, if available, as well

Noise is drawn on the CPU, so that only rounding differs.
"""

import functools
from typing import Any, NamedTuple

import click
import torch

from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.model import load_model
from scripts.bench.paired import Row, Setup, bench

BATCH = 32
SAMPLERS: dict[str, dict[str, Any]] = {
    "Heun": {},
    "ERK-Guid": {"w_stiff": 0.5, "w_con": 0.3},
    "DPM++ 3M": {"solver": "dpmpp", "schedule": "logsnr", "solver_options": {"order": 3}},
}


class Variant(NamedTuple):
    """Device, precision and batch size of a run."""

    device: str
    precision: str
    batch: int


def comparisons(n: int) -> list[tuple[Variant, Variant]]:
    """Return pairs: a variant, and what it is compared with; n images fill each batch."""
    reference = Variant("cpu", "fp32", BATCH)
    others = [Variant("cpu", precision, BATCH) for precision in ("bf16", "fp16")]
    if torch.cuda.is_available():
        precisions = ("fp32", "tf32", "bf16", "fp16")
        others += [Variant("cuda", precision, BATCH) for precision in precisions]
    pairs = [(other, reference) for other in others]
    for same in (reference, *others):
        pairs += [(same._replace(batch=batch), same) for batch in (1, 8, 256) if batch <= n]
    return pairs


def sample(variant: Variant, settings: Settings, n: int) -> torch.Tensor:
    """Sample digits of the seeds 0 to n - 1 as uint8 [n, 1, 8, 8]."""
    model = load_model("digits", variant.device, precision=variant.precision)
    job = Job(model, settings, seeds=range(n), batch=variant.batch, noise_device="cpu")
    return torch.cat([batch.wait() for batch in generate(job)])


def difference(images: torch.Tensor, reference: torch.Tensor) -> Row:
    """Return statistics of pixel differences of two uint8 tensors [n, 1, 8, 8], in grey levels."""
    levels = (images.int() - reference.int()).abs()
    return {
        "pixels that differ": (levels > 0).double().mean().item(),
        "mean": levels.double().mean().item(),
        "99.9 %": levels.flatten().double().quantile(0.999).item(),
        "max": levels.max().item(),
    }


@bench(
    click.option("--images", default=1024, help="Images of every row."),
    click.option("--steps", default=32, help="Intervals of the schedule."),
)
def main(setup: Setup, images: int, steps: int) -> list[Row]:
    """Measure how far images differ between devices, precisions and batch sizes."""
    rows: list[Row] = []
    for name, options in SAMPLERS.items():
        settings = Settings(steps=steps, **options)
        sampled = functools.cache(functools.partial(sample, settings=settings, n=images))
        for variant, other in comparisons(images):
            row = {"sampler": name, **variant._asdict(), "against": " ".join(map(str, other))}
            rows.append(row | {"n": images} | difference(sampled(variant), sampled(other)))
    return rows


if __name__ == "__main__":
    main()
