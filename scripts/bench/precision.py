"""How far images move with the device, the precision and the batch size, in grey levels.

    python -m scripts.bench.precision     # minutes on one core; CUDA, where there is one, as well

Writes results/bench/precision.json. Noise is drawn on the CPU, so that only rounding differs.
"""

from pathlib import Path
from typing import NamedTuple

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.sampling import generate
from erk.method.settings import Settings
from erk.models.model import load_model
from scripts.bench.paired import OUT, Row, report, use_threads

BATCH = 32
WAYS = {
    "Heun": Settings(),
    "ERK-Guid": Settings(w_stiff=0.5, w_con=0.3),
    "DPM++ 3M": Settings(solver="dpmpp", schedule="logsnr", solver_options={"order": 3}),
}


class Place(NamedTuple):
    """Where and how images are made."""

    device: str
    precision: str
    batch: int


def places() -> list[Place]:
    """The first one is what the others are compared with."""
    cpu = [Place("cpu", "fp32", batch) for batch in (BATCH, 1, 8, 256)]
    found = [*cpu, Place("cpu", "bf16", BATCH), Place("cpu", "fp16", BATCH)]
    if torch.cuda.is_available():
        found += [Place("cuda", how, BATCH) for how in ("fp32", "tf32", "bf16", "fp16")]
    return found


def images_at(place: Place, settings: Settings, n: int) -> torch.Tensor:
    """The digits of the seeds 0 to n - 1, uint8 [n, 1, 8, 8]."""
    model = load_model("digits", place.device, precision=place.precision)
    made = generate(model, range(n), settings, batch=place.batch, noise_device="cpu")
    return torch.cat([batch.images for batch in made])


def compared(images: torch.Tensor, reference: torch.Tensor) -> Row:
    """Differences of pixels, uint8 [n, 1, 8, 8] both, in grey levels."""
    apart = (images.int() - reference.int()).abs()
    return {
        "pixels that differ": (apart > 0).double().mean().item(),
        "mean": apart.double().mean().item(),
        "99.9 %": apart.flatten().double().quantile(0.999).item(),
        "most": apart.max().item(),
    }


@click.command(context_settings=CONTEXT)
@click.option("--images", default=1024, help="Images of every row.")
@OUT
@clean_exit
def main(images: int, out: Path) -> None:
    """Measure by how many grey levels images differ between devices, precisions, batch sizes."""
    use_threads(1)
    rows: list[Row] = []
    for way, settings in WAYS.items():
        first, *others = places()
        reference = images_at(first, settings, images)
        for place in others:
            found = compared(images_at(place, settings, images), reference)
            rows.append({"sampler": way, **place._asdict(), "n": images} | found)
    report("precision", rows, [], out, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
