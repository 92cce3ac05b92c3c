"""From options to a card: the work of `erk calibrate`.

Intermediate results are kept beside the card until it is written, so a stopped command continues
and writes the same card.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from tqdm import tqdm

from erk.analysis.toy import ExactToy
from erk.calibration import calibrate as calibration
from erk.calibration.contest import Plan
from erk.calibration.fit import USUAL
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem
from erk.commands.calibrate import RULE
from erk.generation.job import Labels, check_labels
from erk.generation.options import DEFAULTS, labels_of, load_networks, networks_of, settings_of
from erk.generation.sampling import draw_inputs
from erk.io.atomic import check_target
from erk.io.cache import digest
from erk.io.files import read_regular
from erk.io.untrusted import parse_json
from erk.runtime.distributed import pick_device
from erk.runtime.memory import fitting, load_fitting
from erk.runtime.provenance import provenance

TOY = "toy"  # the preset that is no network
DONE = "{} exists already; nothing to do."
GIVEN = ("solver", "schedule", "steps", "rho", "solver_option", "afs", "denoise_to_zero")
"""Options whose settings are searched unless given."""


class Request(NamedTuple):
    """The options of the command, checked before any weights are read."""

    options: dict[str, Any]  # those of erk generate, complete
    fixed: dict[str, Any]  # settings that are not searched
    labels: Labels

    @property
    def name(self) -> str:
        """The preset, or the name of the network's file."""
        return self.options["preset"] or Path(self.options["net"]).stem


def request_of(options: dict[str, Any]) -> Request:
    """Check the options of the command. Raises ValueError or OSError."""
    given = [name for name in GIVEN if options[name]]
    full = DEFAULTS | {name: value for name, value in options.items() if value is not None}
    if full["preset"] == TOY:
        if full["net"] or full["gnet"] or full["guidance"] not in (None, 1):
            raise ValueError("the toy is exact: leave out --net, --gnet and --guidance.")
        if full["labels"] != "random" or full["class_idx"] is not None:
            raise ValueError("the toy has no classes: leave out --class and --labels.")
        settings, labels = settings_of(full, 1.0), "random"
        more: dict[str, Any] = {"dtype": torch.float64}
    else:
        settings, more = settings_of(full, networks_of(full)[2]), {}
        labels, _ = labels_of(full["labels"], full["class_idx"])  # type: ignore[assignment]
    names = ["solver_options" if name == "solver_option" else name for name in given]
    names += ["sigma_min", "sigma_max", "guidance", "guidance_interval", *RULE]
    return Request(full, {name: getattr(settings, name) for name in names} | more, labels)


def problem_of(request: Request) -> tuple[Problem, Plan]:
    """Load the networks and check the plan. Raises ValueError, OSError or MemoryError."""
    options = request.options
    corrections = tuple(options["corrections"]) or calibration.SEARCHED
    corrections = tuple(name for name in corrections if name != "none")
    if options["preset"] == TOY:
        torch.set_num_threads(1)  # the order of sums depends on the number of threads
        model: Any = ExactToy()
        guide, draw = None, None
    else:
        net, gnet, _ = networks_of(options)
        device = pick_device(options["device"])
        model, guide = load_fitting(load_networks, options, net, gnet, device)
        draw = _draw(request, model)
    directions = tuple(options["directions"]) or USUAL
    problem, plan = calibration.plan_of(
        model, options["nfe"], request.fixed, options["seeds"], guide, corrections, directions,
        options["evaluations"], options["batch"], draw,
    )  # fmt: skip
    if options["preset"] != TOY:
        seeds = [seed for part in calibration.seeds_of(plan) for seed in part]
        check_labels(request.labels, model.label_dim, seeds)
    return problem, plan


def _draw(request: Request, model: Any) -> Any:
    """Return the function that draws noise and labels as `erk generate` does."""
    noise_device = "cpu" if request.options["noise"] == "cpu" else None

    def draw(seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        _, noise, _, labels = draw_inputs(model, seeds, request.labels, noise_device)
        return noise, labels

    return draw


def facts_of(request: Request, problem: Problem, plan: Plan, key: Any) -> dict[str, Any]:
    """Describe what a card is computed from, beside the networks."""
    options, model, guide = request.options, problem.model, problem.guide_model
    return {
        "key": digest(key, calibration.VERSION),
        "network": model.name,  # type: ignore[attr-defined]
        "guide": guide and guide.name,  # type: ignore[attr-defined]
        "seeds": [f"{part[0]}-{part[-1]}" for part in calibration.seeds_of(plan)],
        "roles": list(calibration.ROLES),
        "labels": options["labels"],
        "class": options["class_idx"],
        "corrections": list(plan.corrections),
        "directions": list(plan.directions),
        "reference_evaluations": plan.evaluations,
        "batch": problem.batch,
        "noise": options["noise"],
        "precision": options["precision"],
    }


def run_calibration(options: dict[str, Any]) -> None:
    """Calibrate and write the card, unless it exists. Raises ValueError or OSError."""
    request = request_of(options)
    path = Path(options["out"] or f"{request.name}-{options['nfe']}.card.json")
    check_target(path)
    problem, plan = problem_of(request)
    key = [calibration.key_of(problem, plan), options["precision"]]
    facts = facts_of(request, problem, plan, key)
    if is_done(path, facts):
        return
    seconds = calibration.check_repeatable(problem, calibration.seeds_of(plan)[0])
    cost = calibration.cost_of(problem, plan)
    click.echo(describe_cost(cost, seconds, plan, request.fixed["guidance"] != 1), err=True)
    if options["dry_run"]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = Parts(path.with_name(path.name + ".parts"), key, calibration.VERSION)
    with progress_bar(problem, cost):
        card = fitting(calibration.calibrate_problem, problem, plan, parts)
    if card is None:
        raise MemoryError(
            f"calibrating {problem.batch} samples at a time does not fit into memory: "
            "use a smaller --batch, fewer --seeds or another --device"
        )
    origin = {"evaluations": cost, **provenance(problem.model.device)}  # type: ignore[attr-defined]
    card = card._replace(report={"calibration": facts, **card.report, **origin})
    card.save(path)
    parts.remove()
    click.echo(f"{card}\nwrote {path}")


def is_done(path: Path, facts: dict[str, Any]) -> bool:
    """Return whether the card exists, with a message. ValueError for another card or file."""
    if not path.exists():
        return False
    try:
        same = parse_json(read_regular(path))["calibration"]["key"] == facts["key"]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{path} holds the result of other settings: choose another --out.")
    click.echo(DONE.format(path))
    return True


@contextmanager
def progress_bar(problem: Problem, most: int) -> Iterator[None]:
    """Show the evaluations of the network on stderr, of at most `most` samples."""
    network = getattr(problem.model, "network", None)  # the exact toy takes seconds
    with tqdm(
        total=most, desc="Calibrating", mininterval=0.5, disable=network is None,
        bar_format="{l_bar}{bar}| {n_fmt} of at most {total_fmt} evaluations [{elapsed}]",
    ) as bar:  # fmt: skip
        def count(_: Any, given: tuple[Tensor, ...], __: Any) -> None:
            bar.update(len(given[0]))

        hook = network.register_forward_hook(count) if network is not None else nullcontext()
        with hook:
            yield


def describe_cost(cost: int, seconds: float, plan: Plan, guided: bool) -> str:
    """Describe the cost of a calibration in one line."""
    guide = " and as many of the guide" if guided else ""
    return (
        f"calibration: at most {cost:,} evaluations of the network{guide}, about "
        f"{cost * seconds:,.0f} s here, as much as sampling {cost // plan.nfe:,} images at "
        f"{plan.nfe} each"
    )
