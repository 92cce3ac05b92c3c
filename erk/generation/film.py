"""The trajectory as a film: the state x and the denoised D of some seeds while sigma falls."""

import io
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erk.generation.job import Job
from erk.generation.options import open_job
from erk.generation.record import check_writable
from erk.generation.sampling import draw_inputs
from erk.generation.sheets import Cell, captioned_sheet
from erk.io.atomic import write_file
from erk.method.sampler import integrate
from erk.runtime.shards import shard_of

KINDS = {".gif": "GIF", ".webp": "WEBP"}
SEEDS = 8  # of a film: the first ones
PACE, HOLD = 150, 1500  # milliseconds of a frame, of the last one


def check_film(place: str) -> None:
    """ValueError unless a film can be written there."""
    if Path(place).suffix not in KINDS:
        raise ValueError(f"--animate writes a .gif or .webp film; call it so, not '{place}'.")
    check_writable(Path(place).absolute().parent)


def write_film(place: str, options: dict[str, Any]) -> None:
    """Sample the first seeds of generate.py's `options` once more and film them.

    Of several processes or shards the first one does it. Raises what `open_job` raises.
    """
    shard = shard_of(options["shard"])
    if os.environ.get("RANK", "0") != "0" or (shard is not None and shard[0] > 0):
        return
    job = open_job(options)
    frames = film(job)
    pictures = [Image.fromarray(np.ascontiguousarray(f.transpose(1, 2, 0))) for f in frames]
    stream, path = io.BytesIO(), Path(place)
    pace = [PACE] * (len(pictures) - 1) + [HOLD]
    how: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {"optimize": False}
    pictures[0].save(stream, KINDS[path.suffix], save_all=True, append_images=pictures[1:],
                     duration=pace, loop=0, **how)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, stream.getvalue())
    click.echo(f"wrote {path}: x and D of {len(job.seeds[:SEEDS])} seeds")


@torch.inference_mode()
def film(job: Job) -> list[np.ndarray]:
    """A frame uint8 [3, H, W] for the start of each step, and one of the sample.

    x is shown with the standard deviation of data, x / sqrt(1 + (sigma / 0.5)^2), and both are
    decoded as pictures are, latents by their decoder.
    """
    seeds, model = job.seeds[:SEEDS], job.model
    source, noise, _, vectors = draw_inputs(model, seeds, job.labels, job.noise_device)
    drift = job.settings.drift(model, vectors, job.guide)
    frames: list[np.ndarray] = []
    for state in integrate(drift, noise, job.settings, source.randn_like):
        x, sigma = state.step.start.x, state.sigma
        title = f"step {len(frames)}, sigma {float(sigma):.4g}"
        shrunk = x / (1 + (sigma / 0.5) ** 2) ** 0.5
        frames.append(_frame(model, seeds, shrunk, state.denoised, title))
        x0 = state.x
    return [*frames, _frame(model, seeds, x0, x0, "the sample")]


def _frame(model: Any, seeds: list[int], x: Tensor, denoised: Tensor, title: str) -> np.ndarray:
    shown = [model.decode(part.to(torch.float32)).cpu().numpy() for part in (x, denoised)]
    columns = [
        [Cell(state), Cell(picture, f"seed {seed}")]
        for state, picture, seed in zip(*shown, seeds, strict=True)
    ]
    return captioned_sheet(columns, ["x", "D"], title, SEEDS)
