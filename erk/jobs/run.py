"""What generate.py does: options in, a finished folder out, spread over processes."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ..fetch import sha256_of
from ..models.model import load_model
from ..models.presets import find_preset
from ..sampler import Settings
from ..world import World, from_first, join, pick_device, provenance, wait
from .cli import parse_seeds
from .folder import RunFolder, format_seeds
from .generation import Labels, check_labels, generate
from .images import png_bytes, read_png, sheet, write_whole

SAMPLING = ("solver", "schedule", "steps", "sigma_min", "sigma_max", "rho", "w_stiff", "w_con",
            "S_churn", "S_min", "S_max", "S_noise")  # fmt: skip


def run(**options: Any) -> None:
    """Make all pictures that `options` (those of generate.py) ask for and that are not there yet.

    Everything that can be checked is checked before weights are read, and everything else before
    anything is written. Raises ValueError, OSError or NonFiniteError, each with one sentence.
    """
    net, gnet, guidance = _networks(options)
    settings = Settings(
        guidance=guidance,
        guidance_interval=_interval(options["guidance_interval"]),
        **{name: options[name] for name in SAMPLING},
    )
    seeds = parse_seeds(options["seeds"])
    labels = _labels(options["labels"], options["class_idx"])
    device = pick_device(options["device"])
    folder = RunFolder(
        Path(options["outdir"]),
        options["kind"],
        options["subdirs"],
        _identity(options, settings, net, gnet, device),
    )
    pending = folder.check(seeds)
    if not pending and folder.record.get("complete"):
        click.echo(f"{folder.folder}: all {len(seeds)} pictures are there; nothing to do.")
        if options["grid"] and folder.kind == "png" and not (folder.folder / "grid.png").exists():
            _write_grid(folder, seeds)
        return
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # as torchrun does: CPU rounding depends on how threads share work
    torch.backends.cuda.matmul.allow_tf32 = options["precision"] == "tf32"
    torch.backends.cudnn.allow_tf32 = options["precision"] == "tf32"
    how = {"precision": options["precision"], "offline": options["offline"]}
    model = load_model(net, device, vae=options["vae"], **how)
    guide = None if gnet is None else load_model(gnet, device, **how)
    check_labels(labels, model.label_dim, seeds)
    facts = {
        "seeds": format_seeds(seeds),
        "images": len(seeds),
        "batch": options["batch"],
        "network": _describe(model),
        "guide": guide and _describe(guide),
        **provenance(device),
    }
    folder.check_networks(facts)
    with join(device) as world:
        pending = from_first(world, pending)
        if world.rank == 0:
            folder.begin({**facts, "processes": world.size})
        wait(world)
        try:
            _make(world, folder, pending, model, guide, settings, labels, options)
        except Exception:  # bad weights, no VAE, a full disk: no empty run stays behind
            folder.abandon()
            raise
        wait(world)
        if world.rank == 0:
            if options["grid"]:
                _write_grid(folder, seeds)
            folder.finish()
            _report(folder, seeds)


def _make(
    world: World,
    folder: RunFolder,
    pending: list[int],
    model: Any,
    guide: Any,
    settings: Settings,
    labels: Labels,
    options: dict[str, Any],
) -> None:
    """This process's share: every size-th batch of the pending seeds."""
    size = options["batch"]
    batches = [pending[i : i + size] for i in range(0, len(pending), size)]
    own = [seed for batch in batches[world.rank :: world.size] for seed in batch]
    noise_device = "cpu" if options["noise"] == "cpu" else None
    made = generate(
        model, own, settings,
        guide_model=guide, labels=labels, batch=size, noise_device=noise_device,
    )  # fmt: skip
    with click.progressbar(
        length=len(own), label="Sampling", file=sys.stderr, hidden=world.rank > 0
    ) as bar:
        for batch in made:
            if world.rank == 0:  # before the pictures: who finds all of them finds NFE, too
                folder.note({"nfe": batch.nfe, "guide_nfe": batch.guide_nfe})
            for seed, image in zip(batch.seeds, batch.images.numpy(), strict=True):
                folder.add(seed, image)
            bar.update(len(batch.seeds))


def _networks(options: dict[str, Any]) -> tuple[str, str | None, float]:
    """Addresses of network and guide, and the guidance weight; no guide at guidance 1."""
    net, gnet, guidance = options["net"], options["gnet"], options["guidance"]
    if options["preset"] is not None:
        preset = find_preset(options["preset"])
        net, gnet = net or preset.net, gnet or preset.gnet
        guidance = preset.guidance if guidance is None else guidance
    if net is None:
        raise ValueError(
            "no network: give --preset NAME or --net FILE (a first try: --preset digits "
            "--seeds 0-63; all names: --list-presets)."
        )
    guidance = 1.0 if guidance is None else guidance
    if guidance != 1 and gnet is None:
        raise ValueError(f"--guidance {guidance:g} needs a guiding network: give --gnet FILE.")
    return net, None if guidance == 1 else gnet, guidance


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        lo, hi = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--guidance-interval wants LO,HI in sigma, not '{text}'.") from None
    return lo, hi


def _labels(policy: str, class_idx: int | None) -> Labels:
    """The label policy; a file has one line 'SEED CLASS' per seed."""
    if class_idx is not None and policy != "random":
        raise ValueError("--class and --labels exclude each other; give one of them.")
    if class_idx is not None:
        return class_idx
    if policy in ("random", "balanced"):
        return policy
    if not Path(policy).is_file():
        raise FileNotFoundError(f"--labels wants random, balanced or a file; '{policy}' is none.")
    rows: dict[int, int] = {}
    for number, line in enumerate(Path(policy).read_text().splitlines(), 1):
        words = line.replace(",", " ").split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            raise ValueError(f"{policy}:{number} is not 'SEED CLASS' but '{line[:40]}'.")
        rows[int(words[0])] = int(words[1])
    return rows


def _identity(
    options: dict[str, Any], settings: Settings, net: str, gnet: str | None, device: torch.device
) -> dict[str, Any]:
    """All that a picture depends on, beside its seed and the rounding of batch sizes."""
    drawn = "cpu" if options["noise"] == "cpu" else device.type
    labels = options["labels"]
    if labels not in ("random", "balanced"):
        labels = f"file {sha256_of(Path(labels))}"
    return {
        "net": net.rpartition("/")[2],
        "gnet": gnet and gnet.rpartition("/")[2],
        **asdict(settings),
        "labels": labels,
        "class": options["class_idx"],
        "noise": drawn,
        "precision": options["precision"],
        "vae": options["vae"],
        "format": options["kind"],
        "subdirs": options["subdirs"],
    }


def _describe(model: Any) -> dict[str, str]:
    return {"name": model.name, "sha256": model.sha256, "licence": model.licence}


def _write_grid(folder: RunFolder, seeds: list[int]) -> None:
    pages = np.stack([read_png(folder.path(seed)) for seed in seeds[:100]])
    place = folder.folder / "grid.png"
    write_whole(place, png_bytes(sheet(pages, scale=max(1, 48 // pages.shape[2]))))
    click.echo(f"wrote {place}")


def _report(folder: RunFolder, seeds: list[int]) -> None:
    nfe = f"NFE {folder.record['nfe']}"
    if folder.record["guide_nfe"]:
        nfe += f" + {folder.record['guide_nfe']} of the guide"
    click.echo(f"{folder.folder}: {len(seeds)} pictures, {nfe} per picture.")
