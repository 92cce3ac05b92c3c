"""Stability's VAE, from latents to pixels, by precision and memory layout: seconds per picture.

    python -m scripts.bench.decoding                                      # minutes on one core
    python -m scripts.bench.decoding --device cuda --batch 8 --rounds 5

Writes results/bench/decoding.json and .md. Weights are random, of the released shapes; pictures
have 512 x 512 pixels. "ours" is what generate.py does by default, "in the other layout" what it
does not do in that precision. "levels apart" is how far pixels are from ours on average.
"""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erk.commands.cli import CONTEXT, clean_exit
from erk.models.encoders import VAEEncoder
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import ALL, NONE, RELEASED
from scripts.bench.networks import DEVICE, done
from scripts.bench.paired import OUT, ROUNDS, THREADS, Row, in_turns, report, summary, use_threads
from scripts.bench.sampling import write_vae

OTHER = ", in the other layout"


class Way(NamedTuple):
    """How latents are decoded."""

    dtype: torch.dtype = torch.float32
    tf32: tuple[str, ...] = RELEASED


WAYS = {"ours": Way(), "ours, fp16": Way(torch.float16), "ours, bf16": Way(torch.bfloat16)}
ON_CUDA = {"ours, fp32": Way(tf32=NONE), "ours, tf32": Way(tf32=ALL)}


def encoder_of(folder: Path, name: str, latents: Tensor) -> VAEEncoder:
    """It has decoded once: loaded, and laid out."""
    encoder = VAEEncoder(str(folder), batch_size=len(latents), offline=True)
    encoder.dtype, encoder.tf32 = (WAYS | ON_CUDA)[name.removesuffix(OTHER)]
    encoder.decode(latents)
    if name.endswith(OTHER):
        first = next(x for x in encoder.vae.parameters() if x.ndim == 4 and x.shape[2] > 1)
        is_last = first.is_contiguous(memory_format=torch.channels_last)
        encoder.vae.to(memory_format=[torch.channels_last, torch.contiguous_format][is_last])
        encoder.decode(latents)
    return encoder


def decode(encoder: VAEEncoder, latents: Tensor) -> Tensor:
    """Pixels, when the device is done."""
    images = encoder.decode(latents)
    done(latents.device.type)
    return images


def compare(folder: Path, side: int, batch: int, device: str, rounds: int) -> list[Row]:
    """One row per way and layout."""
    latents = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)) / 2
    latents = latents.to(device)
    names = [*WAYS, *(ON_CUDA if device == "cuda" else ())]
    codes = {
        name: functools.partial(decode, encoder_of(folder, name, latents), latents)
        for name in [*names, *(name + OTHER for name in names)]
    }
    with FlopCounterMode(display=False) as counter:
        codes["ours"]()
    gflop = counter.get_total_flops() / batch / 1e9
    runs = in_turns(codes, rounds)
    exact = runs["ours"].value.int()
    return [
        {"code": name, "batch": batch, "s per picture": figures["seconds"] / batch}
        | figures
        | {"GFLOP": gflop, "GFLOP/s": gflop * batch / figures["seconds"]}
        | {"levels apart": (runs[name].value.int() - exact).abs().double().mean().item()}
        for name, figures in summary(runs).items()
    ]


@click.command(context_settings=CONTEXT)
@click.option("--tiny", is_flag=True, help="Another VAE and 8 x 8 latents, for a trial.")
@click.option("--batch", default=1, help="Pictures at a time.")
@DEVICE
@ROUNDS
@THREADS
@OUT
@clean_exit
def main(tiny: bool, batch: int, device: str, rounds: int, threads: int, out: Path) -> None:
    """Time the VAE's decoder."""
    use_threads(threads)
    keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory() as place:
        folder = write_vae(Path(place), "tiny" if tiny else "xs")
        rows = compare(folder, 8 if tiny else 64, batch, device, rounds)
    report("decoding", rows, ["diffusers"], out, device)


if __name__ == "__main__":
    main()
