"""What the command `tune` does: options in, a card and its picture out, resumable between."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from erk.calibration import tune as tuning
from erk.calibration.problem import ExactToy, Problem, count_nfe, leveled
from erk.calibration.solver_error import EVALUATIONS
from erk.calibration.tune import Keep, Trial, Tuned
from erk.calibration.tune_plot import picture
from erk.generation.job import Job, computation, plain
from erk.generation.options import DEFAULTS, labels_of, networks_of, open_job, settings_of
from erk.generation.sampling import draw_inputs
from erk.generation.seeds import format_seeds, parse_seeds
from erk.io.atomic import uninterrupted, write_file
from erk.method.settings import Settings
from erk.models.noise import noise_and_labels
from erk.runtime.memory import fitting
from erk.runtime.provenance import provenance

TOY = "toy"  # the preset that is no network
OFF = "--w-stiff 0"
FINER = 4  # evaluations of the converged solution per step of the solver, at least


class Asked(NamedTuple):
    """The options, checked before any weights are read."""

    options: dict[str, Any]  # generate.py's, complete
    settings: Settings
    seeds: list[int]
    held_out: list[int]
    evaluations: int
    check: bool

    @property
    def name(self) -> str:
        return self.options["preset"] or Path(self.options["net"]).stem


def run(options: dict[str, Any], out: Path | None) -> None:
    """Choose weights and write the card, unless it is there. Raises ValueError or OSError."""
    dry_run = options.pop("dry_run")
    asked = check(options)
    problem, facts, key = open_problem(asked)
    click.echo(cost(asked, problem))
    if dry_run:
        return
    stem = f"{asked.name}-{asked.settings.solver}-{asked.settings.steps}-{key[:8]}"
    place = out or Path("results") / "tune" / f"{stem}.json"
    if place.exists():
        card = json.loads(place.read_text("utf-8"))
        if card.get("key") != key:
            raise ValueError(f"{place} holds other settings' result; choose another --out.")
        click.echo(f"{told(card)}\n{place} is there; nothing to do.")
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    work = place.parent / f"{place.stem}-work-{key[:8]}"
    total = len(asked.seeds) + len(asked.held_out) + _runs(asked)
    with keeping(work, -(-total // problem.batch)) as keep:
        card = {"key": key, **facts} | make(asked, problem, keep)
    card |= {"made_by": provenance(problem.model.device)}
    with uninterrupted():
        write_file(place.with_suffix(".png"), picture(card))
        write_file(place, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    shutil.rmtree(work)
    click.echo(f"{told(card)}\nwrote {place} and {place.with_suffix('.png')}")


def check(options: dict[str, Any]) -> Asked:
    """The options of the command, looked at. Raises ValueError, OSError with one sentence."""
    seeds, held = (parse_seeds(options.pop(name)) for name in ("seeds", "held_out"))
    if min(len(seeds), len(held)) < tuning.FIRST:
        raise ValueError(f"--seeds and --held-out want {tuning.FIRST} seeds or more each.")
    both = set(seeds) & set(held)
    if both:
        raise ValueError(
            f"seed {min(both)} is in --seeds and in --held-out: weights must be judged on other "
            "seeds than they are chosen on."
        )
    fine, wants_check = options.pop("evaluations"), options.pop("check")
    full = DEFAULTS | options | {"seeds": format_seeds(seeds)}
    if full["preset"] == TOY:
        if full["net"] or full["gnet"] or full["guidance"] not in (None, 1):
            raise ValueError("the toy is exact: leave out --net, --gnet and --guidance.")
        if full["labels"] != "random" or full["class_idx"] is not None:
            raise ValueError("the toy has no classes: leave out --class and --labels.")
        settings = dataclasses.replace(settings_of(full, 1.0), dtype=torch.float64)
    else:
        settings = settings_of(full, networks_of(full)[2])
        labels_of(full["labels"], full["class_idx"])
    fine = fine or max(EVALUATIONS, FINER * settings.steps)
    return Asked(full, settings, seeds, held, fine, wants_check)


def cost(asked: Asked, problem: Problem) -> str:
    """What it will take, in evaluations of the network."""
    nfe, runs = count_nfe(leveled(asked.settings, problem.model)), _runs(asked)
    fine = (asked.evaluations, asked.evaluations if nfe[1] else 0)
    ends = len(asked.seeds) + len(asked.held_out)
    spent = [ends * f + runs * n for f, n in zip(fine, nfe, strict=True)]
    guide = f" and {spent[1]:,.0f} of the guide" if spent[1] else ""
    return (
        f"at most {spent[0]:,.0f} evaluations of the network{guide}, as many as "
        f"{sum(spent) / sum(nfe):,.0f} samples of this solver take: {ends} converged solutions of "
        f"{asked.evaluations} evaluations, {runs} runs of {nfe[0]:g}"
    )


def _runs(asked: Asked) -> int:
    """The most trajectories of the solver, in the search and on the held-out seeds."""
    judged = len(tuning.WEIGHTS) * tuning.THRESHOLDS + 3 if asked.check else 2
    return tuning.most_runs(len(asked.seeds)) + len(asked.held_out) * judged


def open_problem(asked: Asked) -> tuple[Problem, dict[str, Any], str]:
    """The problem with its networks in place, facts of them, and a key of all of it."""
    batch = asked.options["batch"]
    if asked.options["preset"] == TOY:
        torch.set_num_threads(1)  # the order of sums depends on the number of threads
        toy = ExactToy()
        problem = Problem(toy, None, asked.settings, partial(noise_and_labels, model=toy), batch)
        facts = {"network": {"name": toy.name, "sha256": toy.sha256}, "guide": None}
        told = [plain(dataclasses.asdict(asked.settings)), toy.sha256, batch, computation()]
        key = json.dumps(told, sort_keys=True)
    else:
        job = open_job(asked.options)
        problem = Problem(job.model, job.guide, job.settings, partial(beginning, job), batch)
        facts = {name: job.metadata[name] for name in ("network", "guide")}
        key = job.key()
    rest = [key, asked.seeds, asked.held_out, asked.evaluations, asked.check]
    return problem, facts, hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def beginning(job: Job, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Noise and labels of the seeds, as generate.py draws them."""
    _, noise, _, labels = draw_inputs(job.model, seeds, job.labels, job.noise_device)
    return noise, labels


def make(asked: Asked, problem: Problem, keep: Keep) -> dict[str, Any]:
    """Search, then judge the choice on the held-out seeds; the card's numbers."""
    ends = tuning.converged(problem, asked.seeds, asked.evaluations, keep, "converged")
    found = tuning.tune(problem, asked.seeds, ends, keep)
    ends = tuning.converged(problem, asked.held_out, asked.evaluations, keep, "held-out-converged")
    blank = found.choice.errors[:0]
    grid = [one for one in found.trials if asked.check or one is found.choice]
    rest = [one for one in grid[1:] if one is not found.choice]
    fresh = [one._replace(errors=blank) for one in (found.trials[0], found.choice, *rest)]
    plain_one, choice, *others = tuning.measure(
        problem, asked.held_out, ends, fresh, keep, "held-out"
    )
    card = _card(asked, problem, found)
    plain_error = plain_one.errors.mean().item()
    card["held_out"] = _row(choice, plain_one) | {"plain_error": plain_error}
    if card["held_out"]["ratio"] >= 1:  # fresh seeds do not bear the choice out
        card["flags"] = OFF
    if asked.check:
        best = min((plain_one, choice, *others), key=lambda one: one.errors.mean().item())
        card["grid_best"] = _row(best, plain_one)
        card["over_grid_best"] = (choice.errors.mean() / best.errors.mean()).item()
    return card


def _card(asked: Asked, problem: Problem, found: Tuned) -> dict[str, Any]:
    plan, base = asked.settings, found.trials[0]
    w_stiff, w_con = found.choice.w_stiff, found.choice.w_con
    return {
        "what": "ERK-Guid's w_stiff and w_con, chosen by the distance to the converged solution",
        "name": asked.name,
        "settings": plain(dataclasses.asdict(plan)),
        "labels": asked.options["labels"],
        "class": asked.options["class_idx"],
        "sigmas": plan.sigmas(problem.model).tolist(),
        "nfe": sum(count_nfe(leveled(plan, problem.model))),
        "evaluations": asked.evaluations,
        "seeds": format_seeds(asked.seeds),
        "held_out_seeds": format_seeds(asked.held_out),
        "w_stiff": w_stiff,
        "w_con": w_con if w_stiff else None,
        "flags": f"--w-stiff {w_stiff:g} --w-con {w_con:g}" if w_stiff else OFF,
        "curve": [_row(one, base) for one in found.trials],
    }


def _row(one: Trial, plain_one: Trial) -> dict[str, Any]:
    """Mean error and its ratio to the plain solver's, with their standard errors."""
    ratio, ratio_se = tuning.ratio_of(one, plain_one)
    return {
        "w_stiff": one.w_stiff,
        "w_con": one.w_con if one.w_stiff else None,
        "seeds": len(one.errors),
        "error": one.errors.mean().item(),
        "error_se": (one.errors.std() / math.sqrt(len(one.errors))).item(),
        "ratio": ratio,
        "ratio_se": ratio_se,
    }


def told(card: dict[str, Any]) -> str:
    """The curve at the chosen threshold and the verdict, for people."""
    lines = ["w_stiff   w_con   seeds   error / plain solver's"]
    shown = [r for r in card["curve"] if r["w_stiff"] == 0 or r["w_con"] == card["w_con"]]
    for row in sorted(shown, key=lambda r: r["w_stiff"]):
        gate = "-" if row["w_con"] is None else f"{row['w_con']:g}"
        ratio = f"{row['ratio']:.3f} ± {row['ratio_se']:.3f}"
        lines.append(f"{row['w_stiff']:7g} {gate:>7} {row['seeds']:7}   {ratio}")
    held = card["held_out"]
    lines.append(
        f"held-out seeds {card['held_out_seeds']}: error {held['error']:.4g} ± "
        f"{held['error_se']:.2g}, {held['ratio']:.3f} ± {held['ratio_se']:.3f} of the plain "
        f"solver's {held['plain_error']:.4g}"
    )
    if "grid_best" in card:
        best = card["grid_best"]
        lines.append(
            f"the whole grid's best there: w_stiff {best['w_stiff']:g}, w_con {best['w_con']}, "
            f"{best['ratio']:.3f}; the choice is at {card['over_grid_best']:.3f} of it"
        )
    if card["flags"] == OFF:
        lines.append("no weights beat the plain solver beyond noise, here and on held-out seeds")
    return "\n".join([*lines, f"recommended: {card['flags']}"])


@contextlib.contextmanager
def keeping(work: Path, total: int) -> Iterator[Keep]:
    """A `Keep` on the disk: what is made once is read ever after, whatever ended the process."""
    work.mkdir(exist_ok=True)
    with tqdm(total=total, desc="Tuning", unit="batch", mininterval=0.5) as bar:

        def keep(name: str, make: Callable[[], Tensor]) -> Tensor:
            place = work / f"{name}.npy"
            if not place.exists():
                made = fitting(make)
                if made is None:
                    raise MemoryError(
                        "a batch does not fit into the memory: take a smaller --batch."
                    )
                stream = io.BytesIO()
                np.save(stream, made.cpu().numpy())
                write_file(place, stream.getvalue())
            bar.update()
            return torch.from_numpy(np.load(place))

        yield keep
