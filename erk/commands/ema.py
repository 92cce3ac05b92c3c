"""Post-hoc EMA: a network averaged over any length, from the snapshots of a training run.

    erk ema --in 'snapshots/*.pkl' --std 0.15 --out ema-0.150.safetensors
    erk ema --in snapshots --std 0.05 --std 0.10 --out 'ema-{std}.safetensors'

A snapshot is an average of power-function profile, as EDM2's training stores them at two widths:
NAME-KIMG-STD.pkl, or safetensors whose card says training: {images, ema_std}. The result is their
sum with coefficients by least squares (erk/models/ema.py), a file like any other network.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.untrusted import parse_json
from erk.models.ema import Combination, Profile, combine

KINDS = (".pkl", ".safetensors")
POOR = 0.05  # of the profile is not met; 0.0023 for std 0.15 from 32 snapshots at 0.05 and 0.10


class Snapshot(NamedTuple):
    """A stored average."""

    path: Path
    profile: Profile  # its time in images


@click.command(context_settings=CONTEXT)
@click.option("--in", "sources", multiple=True, required=True, metavar="FILES|DIR",
              help="Snapshots: a pattern, a file or a folder; may be repeated.")  # fmt: skip
@click.option("--std", "stds", type=float, multiple=True, required=True, metavar="STD",
              help="Wanted width, relative to the time of training; may be repeated.")  # fmt: skip
@click.option("--out", required=True, metavar="FILE.safetensors",
              help="What to write; with several --std it holds {std}.")  # fmt: skip
@click.option("--kimg", type=float, help="When the average ends, in thousands of images.  "
              "[default: at the last snapshot]")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32"]),
              help="How to store it.  [default: as the snapshots are]")  # fmt: skip
@clean_exit
def main(sources: Sequence[str], stds: Sequence[float], out: str, kimg: float | None,
         dtype: str | None) -> None:  # fmt: skip
    """Reconstruct networks averaged with other lengths than those that training stored."""
    outputs = _outputs(out, stds)
    snapshots = [s for path in _files(sources) if (s := _snapshot(path)) is not None]
    if not snapshots:
        raise ValueError("--in names reconstructions only: give the snapshots of a training")
    last = max(s.profile.time for s in snapshots)
    time = last if kimg is None else kimg * 1000
    if not 0 < time <= last:
        raise ValueError(f"--kimg {kimg:g} is not within the training, which ended at "
                         f"{last / 1000:g}")  # fmt: skip
    profiles = [s.profile for s in snapshots]
    plans = [combine(profiles, Profile(std, time)) for std in stds]
    for std, plan in zip(stds, plans, strict=True):
        _tell(std, plan, len(snapshots))
    for plan, std, checkpoint in zip(plans, stds, _sums(snapshots, plans, dtype), strict=True):
        _write(outputs[std], checkpoint, snapshots, plan, Profile(std, time))


def _outputs(out: str, stds: Sequence[float]) -> dict[float, Path]:
    if not out.endswith(".safetensors"):
        raise ValueError(f"--out {out} must end in .safetensors; rename it")
    places = {std: Path(out.replace("{std}", f"{std:.3f}")) for std in stds}
    if len({*places.values()}) < len(stds):
        raise ValueError("several --std need several files: write {std} in --out, each width once")
    return places


def _files(sources: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for source in sources:
        here = Path(source)
        paths = here.iterdir() if here.is_dir() else map(Path, glob.glob(source))
        own = sorted(path for path in paths if path.suffix in KINDS)
        if not own:
            raise FileNotFoundError(f"--in {source} names no {' or '.join(KINDS)} file")
        found += own
    return list(dict.fromkeys(found))


def _snapshot(path: Path) -> Snapshot | None:
    """What a snapshot averages, by its card, else by its name; None for a reconstruction."""
    card = path.with_suffix(".json")
    if path.suffix == ".safetensors" and card.is_file():
        try:
            content = parse_json(card.read_bytes())
            if "snapshots" in content:  # made by us, from others
                return None
            told = content.get("training")
            if isinstance(told, dict) and {"images", "ema_std"} <= told.keys():
                return Snapshot(path, Profile(float(told["ema_std"]), float(told["images"])))
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"{card} is not a card: restore it") from None
    name = re.search(r"-(\d+)-(\d\.\d+)$", path.stem)
    if name is None:
        raise ValueError(
            f"{path} does not tell its average: name it ...-KIMG-STD{path.suffix}, such as "
            "net-0134217-0.050.pkl, or add training: {images, ema_std} to its card"
        )
    return Snapshot(path, Profile(float(name[2]), 1000 * float(name[1])))


def _tell(std: float, plan: Combination, n: int) -> None:
    spread = float((plan.coefficients**2).sum() ** 0.5)
    click.echo(
        f"std {std:.3f} from {n} snapshots: {plan.misfit:.2%} of its profile is not met, the "
        f"rounding of stored weights enters {spread:.2g} times"
    )
    if plan.misfit > POOR:
        click.echo(f"warning: {std:g} lies too far from what was stored", err=True)


def _sums(
    snapshots: Sequence[Snapshot], plans: Sequence[Combination], dtype: str | None
) -> Iterator[Any]:
    """A Checkpoint for each plan; every snapshot is read once and summed up in float32.

    Only parameters are averaged: buffers, which never change, are the first snapshot's.
    """
    import torch
    from tqdm import tqdm

    from erk.models.checkpoint import build, read

    first, sums = None, [dict[str, torch.Tensor]() for _ in plans]
    for i, snapshot in enumerate(tqdm(snapshots, "Reading", mininterval=0.5, unit="net")):
        checkpoint = read(snapshot.path)
        if first is None:
            first = checkpoint
            network, _ = build(checkpoint, str(snapshot.path))
            trained = {name for name, _ in network.named_parameters()}
        _check_same(first, checkpoint, snapshots[0].path, snapshot.path)
        for name in trained:
            wide = checkpoint.tensors[name].to(torch.float32)
            for total, plan in zip(sums, plans, strict=True):
                part = wide * plan.coefficients[i].item()
                total[name] = total[name].add_(part) if name in total else part
    assert first is not None
    for total in sums:
        kept = {n: total.pop(n) if n in trained else t for n, t in first.tensors.items()}
        yield first._replace(tensors={
            name: tensor.to(getattr(torch, dtype) if dtype else first.tensors[name].dtype)
            for name, tensor in kept.items()
        })  # fmt: skip


def _check_same(first: Any, other: Any, first_path: Path, path: Path) -> None:
    shapes = [{n: t.shape for n, t in c.tensors.items()} for c in (first, other)]
    if first.architecture.name != other.architecture.name or shapes[0] != shapes[1]:
        raise ValueError(f"{path} is another network than {first_path}: give snapshots of one run")


def _write(
    place: Path, checkpoint: Any, snapshots: Sequence[Snapshot], plan: Combination, wanted: Profile
) -> None:
    from erk.io.download import sha256_of
    from erk.models.checkpoint import write_safetensors

    used = [
        {"file": s.path.name, "sha256": sha256_of(s.path), "ema_std": s.profile.std,
         "images": s.profile.time, "coefficient": float(x)}
        for s, x in zip(snapshots, plan.coefficients, strict=True)
    ]  # fmt: skip
    licence = checkpoint.card.get("licence", "unknown")
    card = {
        "licence": licence,
        "source": "post-hoc EMA by erk ema (Karras et al. 2024, Sec. 3.2)",
        "training": {"images": wanted.time, "ema_std": wanted.std},
        "misfit": plan.misfit,
        "snapshots": used,
    }
    write_safetensors(place, checkpoint._replace(card=card))
    click.echo(f"wrote {place} and its card")


if __name__ == "__main__":
    main()
