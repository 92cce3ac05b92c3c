"""Animations of trajectories: the state x and the denoised D while sigma falls."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erk.generation.job import Job
from erk.generation.options import open_job
from erk.generation.sampling import draw_inputs
from erk.generation.sheets import SheetCell, captioned_sheet
from erk.io.atomic import check_target, save_file
from erk.method.fields import field
from erk.method.sampler import State, integrate
from erk.method.settings import Settings
from erk.runtime.shards import shard_of

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
SEEDS = 8  # the first ones are shown
FRAME_MS, LAST_FRAME_MS = 150, 1500  # milliseconds

Decode = Callable[[Tensor], Tensor]
"""Samples float32 [B, ...] -> images uint8 [B, C, H, W]."""


def check_film(path: str) -> None:
    """Raise ValueError unless an animation can be written to `path`."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"an animation is a .gif or .webp file, not '{path}': rename it.")
    check_target(path)


def write_film(path: str, options: dict[str, Any]) -> None:
    """Sample the first seeds of `erk generate`'s `options` again and animate them.

    Of several processes or shards the first one writes. Raises what `open_job` raises.
    """
    shard = shard_of(options["shard"])
    if os.environ.get("RANK", "0") != "0" or (shard is not None and shard[0] > 0):
        return
    job = open_job(options | {"compile": "never"})  # few images
    write_frames(Path(path), film(job))
    click.echo(f"wrote {path}: x and D of {len(job.seeds[:SEEDS])} seeds")


@torch.inference_mode()
def film(job: Job) -> list[np.ndarray]:
    """Render the frames of a job's first seeds."""
    seeds, model = job.seeds[:SEEDS], job.model

    def states(settings: Settings) -> Iterable[State]:
        inputs = draw_inputs(model, seeds, job.labels, job.noise_device)
        drift = settings.drift(model, inputs.labels, job.guide)
        return integrate(drift, inputs.noise, settings, inputs.source.randn_like)

    settings = job.settings
    plain = replace(settings, w_stiff=0.0, w_con=field("w_con").default, erk=None, erk_proj=False)
    beside = states(plain) if settings.w_stiff or settings.erk is not None else None
    captions = [f"seed {seed}" for seed in seeds]
    return render_frames(states(settings), model.decode, captions, beside)


def render_frames(
    states: Iterable[State],
    decode: Decode,
    captions: Sequence[str],
    plain: Iterable[State] | None = None,
) -> list[np.ndarray]:
    """Render a frame uint8 [3, H, W] for the start of each step, and one of the samples.

    x is shown with the standard deviation of data, x / sqrt(1 + (sigma / 0.5)^2). ``plain``: the
    states without ERK-Guid, whose D is shown below.
    """
    frames: list[np.ndarray] = []
    beside: list[Tensor] = []
    for state, other in zip(states, repeat(None) if plain is None else plain, strict=False):
        x, sigma = state.step.start.x, state.sigma
        title = f"step {len(frames)}, sigma {float(sigma):.4g}"
        scaled = x / (1 + (sigma / 0.5) ** 2) ** 0.5
        beside = [] if other is None else [other.denoised]
        frames.append(_frame(decode, [scaled, state.denoised, *beside], captions, title))
        x0, beside = state.x, [] if other is None else [other.x]
    return [*frames, _frame(decode, [x0, x0, *beside], captions, "the sample")]


def _frame(
    decode: Decode, rows: Sequence[Tensor], captions: Sequence[str], title: str
) -> np.ndarray:
    parts = [decode(part.to(torch.float32)).cpu().numpy() for part in rows]
    columns = [
        [*map(SheetCell, images[:-1]), SheetCell(images[-1], caption)]
        for *images, caption in zip(*parts, captions, strict=True)
    ]
    return captioned_sheet(columns, ["x", "D", "D, plain"][: len(rows)], title, SEEDS)


def write_frames(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 [3, H, W] as an animation that loops; the last frame is held."""
    images = [Image.fromarray(np.ascontiguousarray(f.transpose(1, 2, 0))) for f in frames]
    stream = io.BytesIO()
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_FRAME_MS]
    is_webp = path.suffix == ".webp"
    options: dict[str, Any] = {"lossless": True} if is_webp else {"optimize": False}
    images[0].save(stream, FORMATS[path.suffix], save_all=True, append_images=images[1:],
                   duration=durations, loop=0, **options)  # fmt: skip
    save_file(path, stream.getvalue())
