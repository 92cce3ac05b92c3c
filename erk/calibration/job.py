"""What the command `calibrate` does: options in, a card out, resumable between.

Reference paths are kept beside the card until it is written: a stopped calibration goes on where
it was and gives the same card (docs/beyond.md).
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from erk.calibration.card import FORMAT, networks, no_gain, recipe
from erk.calibration.fit import USUAL, Batch, fit
from erk.calibration.problem import leveled
from erk.calibration.solver_error import (
    EVALUATIONS,
    converged,
    ends,
    errors,
    exact_drift,
    ratio,
    reference_path,
)
from erk.generation.job import Labels, check_labels
from erk.generation.options import (
    DEFAULTS,
    labels_of,
    load_networks,
    networks_of,
    settings_of,
)
from erk.generation.record import check_writable
from erk.generation.sampling import draw_inputs
from erk.generation.seeds import format_seeds, parse_seeds
from erk.io.atomic import write_file
from erk.method.corrections import DIRECTIONS
from erk.method.point import norm
from erk.method.sampler import solve
from erk.method.settings import Settings
from erk.models.model import Model
from erk.runtime.distributed import pick_device
from erk.runtime.memory import fitting, load_fitting
from erk.runtime.provenance import provenance


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
    card: Path

    @property
    def work(self) -> Path:
        """Where reference paths are until the card is written."""
        return self.card.with_name(self.card.name + ".parts")


def run(options: dict[str, Any]) -> None:
    """Calibrate and write the card, unless it is there. Raises ValueError or OSError."""
    seeds = [parse_seeds(options[name]) for name in ("seeds", "held_out")]
    check_seeds(*seeds)
    job, device = open_job(DEFAULTS | options, seeds)
    told = facts(job, options, seeds)
    if job.card.exists():
        check_same(job.card, told)
        click.echo(f"{job.card} is there; nothing to do.")
        return
    cost = cost_of(job, *map(len, seeds))
    click.echo(told_cost(cost, job.plan.guidance != 1), err=True)
    if options["dry_run"]:
        return
    claim(job.work, {**told, "device": device.type})
    made = fitting(calibrate, job, *seeds)
    if made is None:
        raise MemoryError(
            f"calibrating {job.batch} samples at a time does not fit into the memory: "
            "lower --batch or take fewer --seeds, or another --device"
        )
    told = {"format": FORMAT, **told, **made, "cost": cost, **provenance(device)}
    write_file(job.card, (json.dumps(told, indent=1) + "\n").encode())
    shutil.rmtree(job.work)
    click.echo(f"{summary(made['held_out'])}\nwrote {job.card}")


def open_job(options: dict[str, Any], seeds: list[list[int]]) -> tuple[Job, torch.device]:
    """The job with its networks in place: what can be is checked before weights are read."""
    net, gnet, guidance = networks_of(options)
    plan = settings_of(options, guidance)
    directions = tuple(options["directions"]) or USUAL
    unknown = next((name for name in directions if name not in DIRECTIONS), None)
    if unknown is not None or len({*directions}) < len(directions):
        raise ValueError(f"--direction wants different ones of {', '.join(DIRECTIONS)}.")
    labels = labels_of(options["labels"], options["class_idx"])
    name = options["preset"] or Path(net).stem
    card = Path(options["out"] or f"{name}-{plan.solver}-{recipe(plan)['steps']}.card.json")
    check_writable(card.absolute().parent)
    device = pick_device(options["device"])
    model, guide = load_fitting(load_networks, options, net, gnet, device)
    check_labels(labels, model.label_dim, [*seeds[0], *seeds[1]])
    noise_device = "cpu" if options["noise"] == "cpu" else None
    evaluations = options["evaluations"] or EVALUATIONS
    return Job(
        model, guide, plan, labels, options["batch"], evaluations, noise_device, directions, card
    ), device


def check_same(card: Path, facts: dict[str, Any]) -> None:
    """ValueError if a file that is there is not the card of the calibration `facts` describe."""
    try:
        row = json.loads(card.read_text("utf-8"))
        same = {name: row[name] for name in facts} == json.loads(json.dumps(facts))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{card} is another card or file: choose another --out.")


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


def cost_of(job: Job, own: int, held_out: int) -> dict[str, int]:
    """Network evaluations, of one sample each: of the main network and of the guide."""

    def flat(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    plan = leveled(job.plan, job.model)
    sigmas, noise = plan.sigmas(), torch.zeros(1, 1)
    guide = None if plan.guidance == 1 else flat
    runs = [plan.drift(flat, None, guide) for _ in range(3)]
    solve(runs[0], noise, plan)
    reference_path(runs[1], noise, sigmas, job.evaluations)
    reference_path(runs[2], noise, ends(sigmas), job.evaluations // 2)
    samples = (own + 2 * held_out, own + held_out, min(job.batch, held_out))
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
        write_file(place, told.encode())
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
        **asdict(found.correction),
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
        _, noise, _, labels = draw_inputs(job.model, group, job.labels, job.noise_device)
        noise, place = noise.to(job.plan.dtype), job.work / f"{role}-{number:06d}.safetensors"
        if not place.exists():
            drift = exact_drift(job.plan, job.model, labels, job.guide)
            path = reference_path(drift, noise, sigmas, job.evaluations).cpu()
            write_file(place, safetensors.torch.save({"path": path}))
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
    worse = no_gain(held_out["ratio"]["value"], held_out["ratio"]["error"])
    return line + ("\nNo gain: do not use this card." if worse else "")
