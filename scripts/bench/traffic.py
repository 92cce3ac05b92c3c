"""Bytes that networks move and operations that they need, counted on the meta device.

    python -m scripts.bench.traffic                         # seconds
    python -m scripts.bench.traffic --against edbf6d7       # also the networks of that commit

Nothing is computed, so the counts are those of every machine. Rows are one evaluation of EDM2-S in
float16 and of ADM for 64 pixels in float32, and the VAE's decoder for images of 512 x 512 in
float32, from latents to bytes, by our code and by that of diffusers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

from erk.models.edm import EDMPrecond
from erk.models.edm2 import Precond
from erk.models.released import released_architecture
from erk.models.vae import Decoder, pixels_of
from scripts.bench.checkouts import earlier_class
from scripts.bench.counting import Traffic
from scripts.bench.networks import SIZES, VAE, kwargs_of
from scripts.bench.paired import Row, Setup, bench

ADM = "edm-imagenet-64x64-cond-adm.pkl"


def count(what: str, code: str, batch: int, call: Callable[[], Any]) -> Row:
    """Count what a call moves."""
    with torch.inference_mode(), Traffic() as traffic:
        call()
    counts = {f"GB of {kind}": traffic.bytes[kind] / 1e9 for kind in ("products", "others")}
    total = {"GB": traffic.bytes.total() / 1e9, "operations": traffic.operations.total()}
    return {"what": what, "code": code, "batch": batch} | total | counts


def edm2(network: Any, batch: int) -> Callable[[], Tensor]:
    """Return a call of an EDM2 network in float16."""
    network.compute_dtype = torch.float16
    network.fold()
    x = torch.empty(batch, 4, *2 * [network.img_resolution])
    sigma, labels = torch.tensor(1.0, device="cpu"), torch.empty(batch, network.label_dim)
    return lambda: network(x, sigma, labels)


def adm(network: Any, batch: int) -> Callable[[], Tensor]:
    """Return a call of an EDM network in float32."""
    x = torch.empty(batch, network.img_channels, *2 * [network.img_resolution])
    return lambda: network(x, torch.ones(batch), torch.empty(batch, network.label_dim))


def decoders(tiny: bool) -> Iterator[Row]:
    """Count our decoder and that of diffusers, for one image."""
    from diffusers import AutoencoderKL

    small = {"block_out_channels": [32] * 4, "layers_per_block": 1} if tiny else {}
    vae: Any = AutoencoderKL(**(VAE | small))
    latents, ours = torch.empty(1, 4, 64, 64), Decoder(vae)
    yield count("VAE decoder", "ours", 1, lambda: pixels_of(ours, latents))
    theirs = lambda x: vae.decode(x, return_dict=False)[0]  # noqa: E731
    yield count("VAE decoder", "diffusers", 1, lambda: pixels_of(theirs, latents))


def networks(size: str, batch: int, against: str | None) -> Iterator[Row]:
    """Count EDM2's and EDM's networks, and those of a commit."""
    smaller = {"img_resolution": 8, "model_channels": 32} if size == "tiny" else {}
    _, kwargs = released_architecture(ADM)
    cases: list[tuple[str, str, type[nn.Module], dict[str, Any], int, Any]] = [
        (f"EDM2-{size.upper()}", "edm2", Precond, kwargs_of(size), batch, edm2),
        ("ADM", "edm", EDMPrecond, kwargs | smaller, 1, adm),
    ]
    for what, module, kind, options, n, call in cases:
        yield count(what, "ours", n, call(kind(**options).requires_grad_(False), n))
        if against is not None:
            earlier = earlier_class(against, f"erk.models.{module}", kind.__name__)
            network = earlier(**options).requires_grad_(False)
            yield count(what, f"ours at {against}", n, call(network, n))


@bench(
    click.option("--size", type=click.Choice(SIZES), default="s", help="Size of EDM2's network."),
    click.option("--batch", default=64, help="Images per call of EDM2's network."),
    click.option("--against", metavar="COMMIT", help="Also count the networks of that commit."),
    packages=["diffusers"],
)
def main(setup: Setup, size: str, batch: int, against: str | None) -> list[Row]:
    """Count bytes and operations; --rounds and --threads change nothing."""
    with torch.device("meta"):
        return [*networks(size, batch, against), *decoders(size == "tiny")]


if __name__ == "__main__":
    main()
