"""The paper's 2-D toy: Table 1, Figures 1 and 2, and whether ERK-Guid brings samples nearer.

    python -m scripts.paper.toy                    # everything, 4 to 5 CPU minutes
    python -m scripts.paper.toy --what table1      # table1, figure1, figure2 or helps alone
    python -m scripts.paper.toy --fast             # a quick look: 512 trajectories, 20 sub-steps

Writes results/toy/: NAME.json (numbers, settings, caption, provenance), NAME.csv and NAME.png.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch

from erk.analysis import toy, toy_results
from erk.analysis.toy_networks import load_network, read_metadata
from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import save_file
from erk.runtime.provenance import provenance
from metrics.report import to_json, to_text
from scripts.paper import toy_plots
from scripts.paper.config import ROOT, Request, Toy
from scripts.paper.page import Table, flatten, table_of, to_csv
from scripts.paper.tables import Content, write_content

SAMPLES, SEED = 4096, 0
FEWEST = 8  # trajectories that have quartiles
DOTS = 4  # dots of Figure 1 per trajectory of Figure 2
FAST = (512, 20)  # trajectories and sub-steps of a quick look
NETWORKS = {"CFG": ("toy-main", "toy-uncond"), "Autoguidance": ("toy-main", "toy-weak")}
CAPTIONS = {
    "table1": (
        "Errors of one Heun step along the eigenvectors of df/dx, from two points: the centre of "
        "the stiff region as read off Figure 1, (0.54, 1.04), where the published numbers are not "
        "reproduced (last column: the ratio), and a point on a branch, (1.00335, 0.32295), where "
        "all four are within 2 %. At both the dominant parts exceed the subdominant ones. The "
        "paper does not print its point."
    ),
    "figure1": (
        "(a) Samples of p(x; sigma) at step 29 of 32, coloured by stiffness (the bar ends at their "
        "99 % quantile); squares: surroundings of the two crosses, enlarged on the right with "
        "arrows for the sampling direction -f. (b)-(e) "
        "-f along each line, on the dominant and subdominant eigenvector of the "
        "cross's centre. Lines follow these eigenvectors; the paper draws them at 45 degrees."
    ),
    "figure2": (
        "(a)-(c) Median |cos| with the dominant eigenvector of df/dx by quartile of stiffness, at "
        "the states of exact trajectories that have a pair. Bars: quartiles over all steps; "
        "orange curve: quartiles within each step, averaged over the steps; dotted: a random "
        "direction in the plane (0.707). CFG and Autoguidance are the differences of small "
        "networks. (d) Mean |LTE| of one guided step from these states, relative to Heun's. "
        "Gaussian rule: c = max(0, (1/(sigma rho) - 1)/2) in place of w_stiff^2 and no gate."
    ),
    "helps": (
        "Distance of samples to the exact end points from the same start, and sliced W1 between "
        "the two sets. Gaussian rule: c = max(0, (1/(sigma rho) - 1)/2) in place of w_stiff^2 and "
        "no gate."
    ),
}


@dataclass(frozen=True)
class Part:
    """One table or figure of the toy."""

    rows: list[dict[str, Any]]
    tables: list[Table]
    image: bytes | None = None  # a PNG file
    more: dict[str, Any] = field(default_factory=dict)  # for the .json file


@dataclass(frozen=True)
class Experiment:
    """The exact toy of class A, with all that is computed on it."""

    samples: int = SAMPLES
    substeps: int = toy_results.SUBSTEPS
    seed: int = SEED

    @cached_property
    def mixture(self) -> toy.Mixture:
        """The data distribution."""
        return toy.tree("A")

    @cached_property
    def trajectories(self) -> toy_results.ExactRun:
        """The exact trajectories that Figure 2 and `helps` share."""
        networks = {name: load_network(name) for pair in NETWORKS.values() for name in pair}
        guides = {
            kind: (networks[main], networks[other]) for kind, (main, other) in NETWORKS.items()
        }
        start = toy_results.noisy_states(
            self.mixture, self.samples, toy_results.SIGMA_MAX, self.seed
        )
        return toy_results.exact_run(self.mixture, start, guides, self.substeps)

    def table1(self) -> Part:
        """Compute Table 1: norms of the errors along the two eigenvectors."""
        rows = [
            {"from": str(point), **row}
            for point in (toy_results.STIFF, toy_results.BRANCH)
            for row in toy_results.table1(self.mixture, point)
        ]
        return Part(rows, [table_of("Norms along the two eigenvectors.", rows)])

    def figure1(self) -> Part:
        """Compute Figure 1: stiffness over the plane and the drift along four lines."""
        dots = DOTS * self.samples
        data = toy_results.figure1(self.mixture, dots, self.seed)
        rows = [
            {"line": name, "position": at, "dominant": dominant, "subdominant": subdominant}
            for name, line in data.lines.items()
            for at, (dominant, subdominant) in zip(
                line.places.tolist(), (-line.drift).tolist(), strict=True
            )
        ]
        shares = (0.01, 0.25, 0.5, 0.75, 0.99)
        edges = torch.quantile(data.rho, torch.tensor(shares, dtype=torch.float64)).tolist()
        stiffness = {f"{share:.0%}": edge for share, edge in zip(shares, edges, strict=True)}
        caption = f"Quantiles of the stiffness of {dots} samples; the lines are in the csv."
        more = {
            "dots": dots,
            "sigma": toy_results.levels()[toy_results.STEP].item(),
            "stiffness": stiffness,
            "centres": {name: line.centre.tolist() for name, line in data.lines.items()},
            "directions": {name: line.direction.tolist() for name, line in data.lines.items()},
        }
        return Part(rows, [table_of(caption, [stiffness])], toy_plots.figure1(data), more)

    def figure2(self) -> Part:
        """Compute Figure 2: alignment with the dominant eigenvector, and one guided step."""
        run = self.trajectories
        rows, errors = toy_results.figure2(run), toy_results.guided_errors(run)
        states = run.rho.numel()
        tables = [
            table_of(f"Medians over {states} states, by quartile of stiffness.", rows),
            table_of("Mean |LTE| of one guided step relative to Heun's.", errors),
        ]
        more = {
            "states": states,
            "estimated_stiffness": toy_results.estimates(run),
            "guided_errors": errors,
            "networks": {name: read_metadata(name)["sha256"]
                         for pair in NETWORKS.values() for name in pair},
        }  # fmt: skip
        return Part(rows, tables, toy_plots.figure2(rows, errors), more)

    def helps(self) -> Part:
        """Compute the distances of guided trajectories to the exact end points."""
        run = self.trajectories
        rows = toy_results.helps(self.mixture, run.start, run.end)
        caption = "Full trajectories: distance to the exact end points ± standard error."
        return Part(rows, [table_of(caption, rows)], toy_plots.helps(rows))


PARTS: dict[str, Callable[[Experiment], Part]] = {
    "table1": Experiment.table1,
    "figure1": Experiment.figure1,
    "figure2": Experiment.figure2,
    "helps": Experiment.helps,
}


def run(config: Toy, request: Request) -> list[Path]:
    """Compute Table 1, Figure 1 or Figure 2 (with `helps`), write it and return the paths.

    ``num``: trajectories. No network's distribution is sampled, so both scales are the same.
    """
    samples = SAMPLES if request.num is None else request.num
    if samples < FEWEST:
        raise ValueError(f"{config.name} needs --num {FEWEST} or more, not {samples}")
    if request.dry_run:
        click.echo(f"{config.name}: the exact toy in float64; no network is sampled"
                   + (f"; {samples} trajectories" if config.name == "figure2" else ""))  # fmt: skip
        return []
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    experiment = Experiment(samples, toy_results.SUBSTEPS)
    parts = {"": PARTS[config.name](experiment)}
    if config.name == "figure2":
        parts["-helps"] = experiment.helps()
    content = Content(
        [table for part in parts.values() for table in part.tables],
        parts[""].rows,
        [CAPTIONS[config.name]],
        {suffix: part.image for suffix, part in parts.items() if part.image is not None},
    )
    return write_content(config, request, "", content, provenance())


def save(folder: Path, settings: dict[str, Any], name: str, part: Part) -> None:
    """Write NAME.json, its rows as NAME.csv, and the image, if there is one, as NAME.png."""
    rows = [flatten(row) for row in part.rows]
    content = {"caption": CAPTIONS[name], **part.more, "rows": rows}
    made_by = {"settings": settings, "made_by": provenance("cpu")}
    save_file(folder / f"{name}.json", to_json(content | made_by))
    save_file(folder / f"{name}.csv", to_csv(rows))
    if part.image is not None:
        save_file(folder / f"{name}.png", part.image)


@click.command(context_settings=CONTEXT)
@click.option("--what", type=click.Choice([*PARTS, "all"]), default="all", help="Part to compute.")
@click.option("--samples", type=click.IntRange(FEWEST), default=SAMPLES,
              help="Number of trajectories.")  # fmt: skip
@click.option("--fast", is_flag=True, help="512 trajectories and 20 sub-steps: a quick look.")
@click.option("--seed", type=click.IntRange(0), default=SEED, help="Seed of the samples.")
@click.option("--results", default=str(ROOT / "results" / "toy"), help="Folder of the results.")
@clean_exit
def main(what: str, samples: int, fast: bool, seed: int, results: str) -> None:
    """Compute the paper's toy results exactly and write numbers and figures to results/toy/."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    experiment = Experiment(
        min(samples, FAST[0]) if fast else samples, FAST[1] if fast else toy_results.SUBSTEPS, seed
    )
    settings = {
        "samples": experiment.samples, "substeps": experiment.substeps, "seed": seed,
        "steps": toy_results.STEPS, "schedule": "edm", "sigma_max": toy_results.SIGMA_MAX,
        "sigma_min": 0.002, "rho": 7,
    }  # fmt: skip
    for name in PARTS if what == "all" else (what,):
        start = time.process_time()
        part = PARTS[name](experiment)
        for table in part.tables:
            click.echo(f"{table.caption}\n{to_text(table.rows)}")
        save(Path(results), settings, name, part)
        click.echo(f"{name}: {time.process_time() - start:.0f} CPU seconds\n")
    click.echo(f"wrote {results}")


if __name__ == "__main__":
    main()
