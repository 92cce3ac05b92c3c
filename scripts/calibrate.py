"""Fit a solver's corrections to a network: a small JSON card that generate.py --erk FILE uses.

    python scripts/calibrate.py --preset digits --steps 8
    python generate.py --preset digits --steps 8 --erk digits-heun-8.card.json

At every step the multiples of a few directions are fitted that bring the samples nearest to the
converged solution from the same noise (docs/beyond.md); the error before and after is measured on
other seeds. Reference paths are kept beside the card until it is written: a stopped calibration
goes on where it was and gives the same card.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from erk.cards import FORMAT, networks, recipe
from erk.corrections import DIRECTIONS
from erk.files import write_whole
from erk.jobs.cli import CONTEXT, clean_exit, parse_seeds
from erk.jobs.folder import check_writable, format_seeds
from erk.jobs.generation import Labels, check_labels, conditions
from erk.jobs.options import DEFAULTS, labels_of, networks_of, settings_of
from erk.jobs.run import load_networks
from erk.memory import fitting, load_fitting
from erk.models.model import Model
from erk.point import norm
from erk.sampler import Settings, solve
from erk.study.calibration import USUAL, Batch, fit
from erk.study.solver_error import (
    EVALUATIONS,
    converged,
    ends,
    errors,
    exact_drift,
    ratio,
    reference_path,
)
from erk.world import pick_device, provenance


class Job(NamedTuple):
    """What is to be calibrated."""

    model: Model
    guide: Model | None
    plan: Settings
    labels: Labels
    batch: int
    evaluations: int
    noise_device: str | None
    directions: tuple[str, ...]
    work: Path  # reference paths, until the card is written


@click.command(context_settings=CONTEXT)
@click.option("--preset", metavar="NAME", help="Network, guide and guidance by name.")
@click.option("--net", metavar="FILE", help="Network, in place of the preset's.")
@click.option("--gnet", metavar="FILE", help="Guiding network.")
@click.option("--guidance", type=float, help="Weight of model guidance.  [default: the preset's]")
@click.option("--guidance-interval", metavar="LO,HI", help="Where model guidance acts.")
@click.option("--solver", default="heun", metavar="NAME", help="As for generate.py.")
@click.option("--solver-option", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--schedule", default="edm", metavar="NAME|LIST", help="As for generate.py.")
@click.option("--steps", type=int, default=8, help="Intervals of the schedule.")
@click.option("--sigma-min", type=float, default=0.002, help="Lowest noise level above 0.")
@click.option("--sigma-max", type=float, default=80.0, help="Highest noise level.")
@click.option("--rho", type=float, help="Exponent of the schedule.  [default: its own]")
@click.option("--afs", is_flag=True, help="Analytic first step.")
@click.option("--denoise-to-zero", is_flag=True, help="A last Euler step to sigma = 0.")
@click.option("--direction", "directions", multiple=True, type=click.Choice([*DIRECTIONS]),
              help="What the correction is made of; may be repeated.  "
              "[default: all but pair]")  # fmt: skip
@click.option("--seeds", metavar="LIST", default="900000-900255", help="Seeds to calibrate on.")
@click.option("--held-out", metavar="LIST", default="910000-910511",
              help="Other seeds, for the error before and after.")  # fmt: skip
@click.option("--class", "class_idx", type=int, metavar="N", help="One class for all.")
@click.option("--labels", metavar="random|balanced|FILE", default="random",
              help="Class of each sample.")  # fmt: skip
@click.option("--evaluations", type=click.IntRange(8), default=EVALUATIONS,
              help="Of the network on a reference path.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=32, help="Samples at a time.")
@click.option("--noise", type=click.Choice(["device", "cpu"]), default="device",
              help="Where noise is drawn.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"]),
              default="auto", help="What networks compute in.")  # fmt: skip
@click.option("--out", metavar="FILE", help="The card.  [default: NETWORK-SOLVER-STEPS.card.json]")
@click.option("--dry-run", is_flag=True, help="Say what it would cost and stop.")
@click.option("--offline", is_flag=True, help="Never download.")
@clean_exit
def main(**options: Any) -> None:
    """Calibrate a solver's corrections for a network, schedule and guidance; write a card."""
    options = DEFAULTS | options
    net, gnet, guidance = networks_of(options)
    plan = settings_of(options, guidance)
    seeds = [parse_seeds(options[name]) for name in ("seeds", "held_out")]
    check_seeds(*seeds)
    labels = labels_of(options["labels"], options["class_idx"])
    name = options["preset"] or Path(net).stem
    card = Path(options["out"] or f"{name}-{plan.solver}-{recipe(plan)['steps']}.card.json")
    check_writable(card.absolute().parent)
    cost = cost_of(plan, *map(len, seeds), options["batch"], options["evaluations"])
    click.echo(told_cost(cost, guidance != 1), err=True)
    if options["dry_run"]:
        return
    device = pick_device(options["device"])
    model, guide = load_fitting(load_networks, options, net, gnet, device)
    check_labels(labels, model.label_dim, [*seeds[0], *seeds[1]])
    noise_device = "cpu" if options["noise"] == "cpu" else None
    job = Job(
        model, guide, plan, labels, options["batch"], options["evaluations"], noise_device,
        tuple(options["directions"] or USUAL), card.with_name(card.name + ".parts"),
    )  # fmt: skip
    told = facts(job, options, seeds)
    claim(job.work, {**told, "device": device.type})
    made = fitting(calibrate, job, *seeds)
    if made is None:
        raise MemoryError(
            f"calibrating {options['batch']} samples at a time does not fit into the memory: "
            "lower --batch or take fewer --seeds, or another --device"
        )
    told = {"format": FORMAT, **told, **made, "cost": cost, **provenance(device)}
    write_whole(card, (json.dumps(told, indent=1) + "\n").encode())
    shutil.rmtree(job.work)
    click.echo(f"{summary(made['held_out'])}\nwrote {card}")


def facts(job: Job, options: dict[str, Any], seeds: list[list[int]]) -> dict[str, Any]:
    """What the card is for, and how it is made."""
    made_for = recipe(job.plan) | networks(job.model, job.guide, job.plan.guidance)
    return {
        "for": made_for,
        "calibration": {
            "network": job.model.name,
            "guide": job.guide and job.guide.name,
            "seeds": format_seeds(seeds[0]),
            "held_out_seeds": format_seeds(seeds[1]),
            "labels": options["labels"],
            "class": options["class_idx"],
            "directions": job.directions,
            "reference_evaluations": job.evaluations,
            "batch": job.batch,
            "noise": options["noise"],
            "precision": options["precision"],
        },
    }


def check_seeds(own: Sequence[int], held_out: Sequence[int]) -> None:
    """ValueError if errors could not be measured on other samples than those fitted to."""
    if {*own} & {*held_out}:
        raise ValueError("--seeds and --held-out share seeds: measure on others than are fitted.")
    if len(held_out) < 2:
        raise ValueError("--held-out needs two seeds at least, for a standard error.")


def cost_of(
    plan: Settings, own: int, held_out: int, batch: int, evaluations: int
) -> dict[str, int]:
    """Network evaluations, of one sample each: of the main network and of the guide."""

    def flat(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    sigmas, noise = plan.sigmas(), torch.zeros(1, 1)
    guide = None if plan.guidance == 1 else flat
    runs = [plan.drift(flat, None, guide) for _ in range(3)]
    solve(runs[0], noise, plan)
    reference_path(runs[1], noise, sigmas, evaluations)
    reference_path(runs[2], noise, ends(sigmas), evaluations // 2)
    samples = (own + 2 * held_out, own + held_out, min(batch, held_out))
    counts = {
        kind: int(sum(n * getattr(run, kind) for n, run in zip(samples, runs, strict=True)))
        for kind in ("nfe", "guide_nfe")
    }
    return {
        "evaluations": counts["nfe"],
        "guide_evaluations": counts["guide_nfe"],
        "per_image": int(runs[0].nfe),
    }


def told_cost(cost: dict[str, int], guided: bool) -> str:
    """One line on what a calibration costs."""
    more = f" and {cost['guide_evaluations']:,} of the guide" if guided else ""
    total, each = cost["evaluations"], cost["per_image"]
    return (
        f"calibration: {total:,} evaluations of the network{more}, as much as sampling "
        f"{total // each:,} images at these {each} each"
    )


def claim(work: Path, facts: dict[str, Any]) -> None:
    """Begin, or go on with, the calibration that `facts` describe. ValueError for another one."""
    place, told = work / "calibration.json", json.dumps(facts, indent=1, sort_keys=True)
    if not place.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_whole(place, told.encode())
    elif place.read_text() != told:
        raise ValueError(
            f"{work} holds parts of another calibration: remove it, or choose another --out."
        )


def calibrate(job: Job, own: list[int], held_out: list[int]) -> dict[str, Any]:
    """Fit on some seeds, measure on others; rows of the card."""
    batches = [Batch(noise, labels, path) for noise, labels, path in paths(job, own, "fit")]
    found = fit(job.plan, job.model, batches, job.directions, job.guide)
    del batches
    plans = {"before": job.plan, "after": replace(job.plan, erk=found.correction)}
    kept: dict[str, list[Tensor]] = {name: [] for name in (*plans, "reference")}
    for noise, labels, path in paths(job, held_out, "held-out"):
        exact = path[len(path) - 1].to(noise.device)
        for name, plan in plans.items():
            kept[name].append(errors(plan, job.model, noise, labels, exact, job.guide))
        if not kept["reference"]:  # one batch tells
            half = job.evaluations // 2
            rough = converged(job.plan, job.model, noise, labels, job.guide, half)
            kept["reference"].append(norm(rough - exact).flatten())
    before, after, rough = (torch.cat(parts) for parts in kept.values())
    told = {name: mean(values) for name, values in (("before", before), ("after", after))}
    return {
        **found.correction._asdict(),
        "explained": found.explained,
        "held_out": told | {"ratio": ratio(after, before)._asdict()},
        "reference_change_from_half": rough.mean().item(),
    }


def paths(
    job: Job, seeds: list[int], role: str
) -> Iterator[tuple[Tensor, Tensor | None, Sequence[Tensor]]]:
    """(unit noise, labels, reference path) of every batch; paths are made unless they are there."""
    sigmas = job.plan.sigmas(job.model)
    groups = [seeds[i : i + job.batch] for i in range(0, len(seeds), job.batch)]
    quiet = 0.5 if sys.stderr.isatty() else 30
    for number, group in enumerate(tqdm(groups, f"reference paths ({role})", mininterval=quiet)):
        _, noise, _, labels = conditions(job.model, group, job.labels, job.noise_device)
        noise, place = noise.to(job.plan.dtype), job.work / f"{role}-{number:06d}.safetensors"
        if not place.exists():
            drift = exact_drift(job.plan, job.model, labels, job.guide)
            path = reference_path(drift, noise, sigmas, job.evaluations).cpu()
            write_whole(place, safetensors.torch.save({"path": path}))
        yield noise, labels, Stored(place)


class Stored(Sequence[Tensor]):
    """A path on the disk: a state is read when it is looked at."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with safe_open(place, "pt") as file:
            self.length = file.get_slice("path").get_shape()[0]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        with safe_open(self.place, "pt") as file:
            return file.get_slice("path")[index]


def mean(values: Tensor) -> dict[str, float]:
    """Mean and standard error of [n]."""
    return {"value": values.mean().item(), "error": (values.std() / len(values) ** 0.5).item()}


def summary(held_out: dict[str, dict[str, float]]) -> str:
    """One line on what was gained."""
    before, after, gain = (
        f"{told['value']:.4g} +- {told['error']:.2g}" for told in held_out.values()
    )
    line = f"error on held-out seeds: {before} before, {after} after, ratio {gain}"
    worse = held_out["ratio"]["value"] + held_out["ratio"]["error"] > 1
    return line + ("\nNo gain: do not use this card." if worse else "")


if __name__ == "__main__":
    main()
