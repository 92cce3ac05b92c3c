"""Stability's VAE, from latents to pixels, by precision and memory layout: seconds per image.

    python -m scripts.bench.decoding                                      # minutes on one core
    python -m scripts.bench.decoding --side 32                            # images of 256 x 256
    python -m scripts.bench.decoding --device cuda --batch 8 --rounds 5 --compile

Weights are random, with the released shapes; images have 512 x 512 pixels, 8 times --side. "ours"
is the default of erk generate for short runs, "compiled" that for long ones, "in the other layout"
the memory layout that it does not use in that precision. "levels apart" is the mean absolute
difference of pixels from ours, "most levels apart" the largest.
"""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from erk.models.compiling import check_compiler
from erk.models.encoders import VAEEncoder
from erk.runtime.memory import keep_freed_memory
from erk.runtime.precision import ALL, NONE, RELEASED
from scripts.bench.networks import write_vae
from scripts.bench.paired import Row, Setup, bench, in_turns, summary, synchronize

OTHER = ", in the other layout"
COMPILED = ", compiled"


class Variant(NamedTuple):
    """Precision of the decoder."""

    dtype: torch.dtype = torch.float32
    tf32: tuple[str, ...] = RELEASED


VARIANTS = {
    "ours": Variant(), "ours, fp16": Variant(torch.float16), "ours, bf16": Variant(torch.bfloat16)
}  # fmt: skip
ON_CUDA = {"ours, fp32": Variant(tf32=NONE), "ours, tf32": Variant(tf32=ALL)}


def encoder_of(folder: Path, name: str, latents: Tensor) -> VAEEncoder:
    """Load the VAE as the variant says, and decode to warm up."""
    encoder = VAEEncoder(str(folder), batch_size=len(latents), offline=True)
    encoder.compiled = name.endswith(COMPILED)
    variant = name.removesuffix(OTHER).removesuffix(COMPILED)
    encoder.dtype, encoder.tf32 = (VARIANTS | ON_CUDA)[variant]
    for _ in range(3 if encoder.compiled else 1):  # compiles, and records CUDA's graph
        encoder.decode(latents)
    if name.endswith(OTHER):
        first = next(x for x in encoder.vae.parameters() if x.ndim == 4 and x.shape[2] > 1)
        is_last = first.is_contiguous(memory_format=torch.channels_last)
        encoder.vae.to(memory_format=[torch.channels_last, torch.contiguous_format][is_last])
        encoder.decode(latents)
    return encoder


def decode(encoder: VAEEncoder, latents: Tensor) -> Tensor:
    """Decode the latents and wait for the device."""
    images = encoder.decode(latents)
    synchronize(latents.device.type)
    return images


def compare(setup: Setup, folder: Path, side: int, batch: int, compiled: bool) -> list[Row]:
    """Return one row per variant, layout and, if `compiled`, compiled variant."""
    latents = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)) / 2
    latents = latents.to(setup.device)
    names = [*VARIANTS, *(ON_CUDA if setup.device == "cuda" else ())]
    suffixes = ("", OTHER, COMPILED) if compiled else ("", OTHER)
    codes = {
        name + suffix: functools.partial(
            decode, encoder_of(folder, name + suffix, latents), latents
        )
        for suffix in suffixes
        for name in names
    }
    with FlopCounterMode(display=False) as counter:
        codes["ours"]()
    gflop = counter.get_total_flops() / batch / 1e9
    runs = in_turns(codes, setup.rounds)
    reference = runs["ours"].value.int()
    apart = {name: (run.value.int() - reference).abs().double() for name, run in runs.items()}
    return [
        {"code": name, "batch": batch, "s per image": times["seconds"] / batch}
        | times
        | {"GFLOP": gflop, "GFLOP/s": gflop * batch / times["seconds"]}
        | {"levels apart": apart[name].mean().item(), "most levels apart": apart[name].max().item()}
        for name, times in summary(runs).items()
    ]


@bench(
    click.option("--tiny", is_flag=True, help="A small VAE and 8 x 8 latents, for a trial."),
    click.option("--side", default=64, help="Edge of the latents."),
    click.option("--batch", default=1, help="Images per batch."),
    click.option("--compile", "compiled", is_flag=True, help="Also time compiled decoders."),
    packages=["diffusers"],
)
def main(setup: Setup, tiny: bool, side: int, batch: int, compiled: bool) -> list[Row]:
    """Time the VAE's decoder."""
    keep_freed_memory()  # as the commands do
    if compiled:
        check_compiler(torch.device(setup.device))
    with tempfile.TemporaryDirectory() as folder:
        vae = write_vae(Path(folder), "tiny" if tiny else "xs")
        return compare(setup, vae, 8 if tiny else side, batch, compiled)


if __name__ == "__main__":
    main()
