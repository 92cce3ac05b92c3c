"""From options to a card: the work of `erk calibrate` and `erk tune`.

Both keep their intermediate results beside the card until it is written, so a stopped command
continues and writes the same card.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from tqdm import tqdm

from erk.analysis.toy import ExactToy
from erk.calibration import calibrate as calibration
from erk.calibration import tune as tuning
from erk.calibration.card import write_card
from erk.calibration.fit import USUAL
from erk.calibration.parts import Parts
from erk.calibration.plot import plot_tuning
from erk.calibration.problem import Problem, count_nfe, problem_for, with_levels
from erk.calibration.solver_error import EVALUATIONS
from erk.generation.job import Labels, check_labels
from erk.generation.options import (
    DEFAULTS,
    labels_of,
    load_networks,
    networks_of,
    settings_of,
)
from erk.generation.sampling import draw_inputs
from erk.generation.seeds import format_seeds, parse_seeds
from erk.io.atomic import check_target, uninterrupted, write_file
from erk.io.cache import digest, save_json
from erk.method.corrections import Card, no_gain
from erk.method.settings import Settings
from erk.runtime.distributed import pick_device
from erk.runtime.memory import fitting, load_fitting
from erk.runtime.provenance import provenance

TOY = "toy"  # the preset of `erk tune` that is no network
DONE = "{} exists already; nothing to do."
QUIET_SECONDS = 0.5


class Request(NamedTuple):
    """The options of a command, checked before any weights are read."""

    options: dict[str, Any]  # generate.py's, complete
    settings: Settings
    labels: Labels
    seeds: list[int]
    held_out: list[int]

    @property
    def name(self) -> str:
        """The preset, or the name of the network's file."""
        return self.options["preset"] or Path(self.options["net"]).stem


def request_of(options: dict[str, Any]) -> Request:
    """Check the options of a command. Raises ValueError or OSError."""
    seeds, held_out = (parse_seeds(options[name]) for name in ("seeds", "held_out"))
    full = DEFAULTS | options
    if full["preset"] == TOY:
        return Request(full, _toy_settings(full), "random", seeds, held_out)
    settings = settings_of(full, networks_of(full)[2])
    labels, _ = labels_of(full["labels"], full["class_idx"])
    return Request(full, settings, labels, seeds, held_out)


def _toy_settings(options: dict[str, Any]) -> Settings:
    if options["net"] or options["gnet"] or options["guidance"] not in (None, 1):
        raise ValueError("the toy is exact: leave out --net, --gnet and --guidance.")
    if options["labels"] != "random" or options["class_idx"] is not None:
        raise ValueError("the toy has no classes: leave out --class and --labels.")
    return replace(settings_of(options, 1.0), dtype=torch.float64)


def problem_of(request: Request) -> Problem:
    """Load the networks."""
    options, settings = request.options, request.settings
    if options["preset"] == TOY:
        torch.set_num_threads(1)  # the order of sums depends on the number of threads
        return problem_for(ExactToy(), settings, batch=options["batch"])
    net, gnet, _ = networks_of(options)
    device = pick_device(options["device"])
    model, guide = load_fitting(load_networks, options, net, gnet, device)
    check_labels(request.labels, model.label_dim, [*request.seeds, *request.held_out])
    noise_device = "cpu" if options["noise"] == "cpu" else None

    def draw(seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        _, noise, _, labels = draw_inputs(model, seeds, request.labels, noise_device)
        return noise, labels

    return problem_for(model, settings, guide, draw, options["batch"])


def facts_of(request: Request, problem: Problem, evaluations: int) -> dict[str, Any]:
    """Describe what a card is computed from, beside settings and networks."""
    options, model, guide = request.options, problem.model, problem.guide_model
    return {
        "network": model.name,  # type: ignore[attr-defined]
        "guide": guide and guide.name,  # type: ignore[attr-defined]
        "seeds": format_seeds(request.seeds),
        "held_out_seeds": format_seeds(request.held_out),
        "labels": options["labels"],
        "class": options["class_idx"],
        "reference_evaluations": evaluations,
        "batch": problem.batch,
        "noise": options["noise"],
        "precision": options["precision"],
    }


def run_calibration(options: dict[str, Any]) -> None:
    """Calibrate and write the card, unless it exists. Raises ValueError or OSError."""
    request = request_of(options)
    directions = tuple(options["directions"]) or USUAL
    calibration.check_seeds(request.seeds, request.held_out)
    calibration.check_directions(directions)
    steps = request.settings.recipe()["steps"]
    name = f"{request.name}-{request.settings.solver}-{steps}.card.json"
    path = Path(options["out"] or name)
    check_target(path)
    problem, evaluations = problem_of(request), options["evaluations"] or EVALUATIONS
    facts = facts_of(request, problem, evaluations) | {"directions": list(directions)}
    if is_done(path, {"for": problem.identity, "calibration": facts}):
        return
    cost = calibration.cost_of(problem, len(request.seeds), len(request.held_out), evaluations)
    click.echo(describe_cost(cost, request.settings.guidance != 1), err=True)
    if options["dry_run"]:
        return
    key = [problem.key(request.seeds, request.held_out), evaluations, options["precision"]]
    count = calibration.count_paths(problem, request.seeds, request.held_out)
    with keeping(path, key, calibration.VERSION, "Calibrating", count) as parts:
        card = fitting(
            calibration.calibrate_problem, problem, request.seeds, request.held_out, directions,
            evaluations, parts,
        )  # fmt: skip
        if card is None:
            raise MemoryError(
                f"calibrating {problem.batch} samples at a time does not fit into memory: "
                "use a smaller --batch, fewer --seeds or another --device"
            )
        origin = {"cost": cost, **provenance(problem.model.device)}  # type: ignore[attr-defined]
        card = card._replace(report={"calibration": facts, **card.report, **origin})
        write_card(path, card)
        parts.remove()
    click.echo(f"{describe_gain(card)}\nwrote {path}")


def run_tuning(options: dict[str, Any]) -> None:
    """Choose weights and write card and plot, unless they exist. Raises ValueError or OSError."""
    if options["out"] is not None and Path(options["out"]).suffix != ".json":
        raise ValueError(f"--out writes a .json file; give such a name, not '{options['out']}'.")
    request = request_of(options)
    tuning.check_seeds(request.seeds, request.held_out)
    problem, check = problem_of(request), options["check"]
    evaluations = options["evaluations"] or tuning.usual_evaluations(request.settings)
    counts = len(request.seeds), len(request.held_out)
    click.echo(tuning.cost_of(problem, *counts, evaluations, check))
    if options["dry_run"]:
        return
    key = [
        tuning.tuning_key(problem, request.seeds, request.held_out, evaluations, check),
        options["precision"],
    ]
    label = digest(key, tuning.VERSION)
    stem = f"{request.name}-{request.settings.solver}-{request.settings.steps}-{label[:8]}"
    path = Path(options["out"] or Path("results") / "tune" / f"{stem}.json")
    if is_done(path, {"key": label}, describe_tuning):
        return
    total = sum(counts) + tuning.count_runs(*counts, check)
    with keeping(path, key, tuning.VERSION, "Tuning", -(-total // problem.batch)) as parts:
        result = tuning.tune_problem(
            problem, request.seeds, request.held_out, evaluations, check, parts
        )
        card = tuning_card(request, problem, evaluations, label, result.report)
        with uninterrupted():
            write_file(path.with_suffix(".png"), plot_tuning(card))
            write_file(path, save_json(card))
        parts.remove()
    click.echo(f"{describe_tuning(card)}\nwrote {path} and {path.with_suffix('.png')}")


def tuning_card(
    request: Request, problem: Problem, evaluations: int, key: str, report: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of a tuning's JSON file."""
    settings, model, guide = problem.settings, problem.model, problem.guide_model
    return {
        "key": key,
        "network": _describe(model),
        "guide": guide and _describe(guide),
        "what": "ERK-Guid's w_stiff and w_con, chosen by the distance to the converged solution",
        "name": request.name,
        "settings": settings.identity(),
        "labels": request.options["labels"],
        "class": request.options["class_idx"],
        "sigmas": problem.sigmas.tolist(),
        "nfe": sum(count_nfe(with_levels(settings, model))),
        "evaluations": evaluations,
        "seeds": format_seeds(request.seeds),
        "held_out_seeds": format_seeds(request.held_out),
        **report,
        "made_by": provenance(model.device),  # type: ignore[attr-defined]
    }


def _describe(model: Any) -> dict[str, str]:
    return {name: getattr(model, name) for name in ("name", "sha256", "licence")}


def is_done(
    path: Path,
    facts: dict[str, Any],
    describe: Callable[[dict[str, Any]], str] | None = None,
) -> bool:
    """Return whether the card exists, with a message. ValueError for another card or file."""
    if not path.exists():
        return False
    try:
        card = json.loads(path.read_text("utf-8"))
        same = {name: card[name] for name in facts} == json.loads(json.dumps(facts))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{path} holds the result of other settings: choose another --out.")
    if describe is not None:
        click.echo(describe(card))
    click.echo(DONE.format(path))
    return True


@contextmanager
def keeping(path: Path, key: Any, version: int, label: str, total: int) -> Iterator[Parts]:
    """Yield the intermediate results of the card at `path`, with a progress bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(path.name + ".parts")
    with tqdm(total=total, desc=label, unit="batch", mininterval=QUIET_SECONDS) as bar:
        yield Parts(folder, key, version, bar.update)


def describe_cost(cost: dict[str, int], guided: bool) -> str:
    """Describe the cost of a calibration in one line."""
    guide = f" and {cost['guide_evaluations']:,} of the guide" if guided else ""
    total, each = cost["evaluations"], cost["per_image"]
    return (
        f"calibration: {total:,} evaluations of the network{guide}, as much as sampling "
        f"{total // each:,} images at {each} each"
    )


def describe_gain(card: Card) -> str:
    """Describe the errors before and after in one line, and warn if there is no gain."""
    held_out = card.report["held_out"]
    before, after, gain = (
        f"{held_out[name]['value']:.4g} +- {held_out[name]['error']:.2g}"
        for name in ("before", "after", "ratio")
    )
    line = f"error on held-out seeds: {before} before, {after} after, ratio {gain}"
    assert card.ratio is not None
    return line + ("\nNo gain: do not use this card." if no_gain(*card.ratio) else "")


def describe_tuning(card: dict[str, Any]) -> str:
    """Describe the curve at the chosen threshold and the recommendation."""
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
    if card["flags"] == tuning.OFF:
        lines.append("no weights beat the plain solver beyond noise, here and on held-out seeds")
    return "\n".join([*lines, f"recommended: {card['flags']}"])
