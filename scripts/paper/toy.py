"""The paper's 2-D toy: Table 1, Figures 1 and 2, and whether ERK-Guid brings samples nearer.

    python -m scripts.paper.toy                    # everything, 4 to 5 CPU minutes
    python -m scripts.paper.toy --what table1      # table1, figure1, figure2 or helps alone
    python -m scripts.paper.toy --fast             # a quick look: 512 trajectories, 20 sub-steps

Writes results/toy/: NAME.json (numbers, settings, caption, provenance), NAME.csv and NAME.png.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import torch

from erk.analysis import toy, toy_results
from erk.analysis.toy_networks import load_network, read_metadata
from erk.commands.cli import CONTEXT, clean_exit
from erk.runtime.provenance import provenance
from metrics.table import flatten, to_csv, to_json, to_text, write
from scripts.paper import toy_plots

Run = toy_results.ExactRun
Keep = Callable[..., None]
"""`save` with the folder and the settings of the whole run filled in."""

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("table1", "figure1", "figure2", "helps")
NETWORKS = {"CFG": ("toy-main", "toy-uncond"), "Autoguidance": ("toy-main", "toy-weak")}
CAPTIONS = {
    "table1": (
        "Errors of one Heun step from the marked centre of the stiff region, along the "
        "eigenvectors of df/dx there. The published numbers do not come out at that point (last "
        "column: the ratio); the finding does: the dominant parts exceed the subdominant ones."
    ),
    "figure1": (
        "(a) Samples of p(x; sigma) at step 29 of 32, coloured by stiffness (the bar ends at their "
        "99 % quantile); squares: surroundings of the two crosses, enlarged beside it. (b)-(e) "
        "Sampling direction -f along each line, on the dominant and subdominant eigenvector of the "
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


def save(
    folder: Path,
    settings: dict[str, Any],
    name: str,
    rows: list[dict[str, Any]],
    image: bytes | None = None,
    **more: Any,
) -> None:
    """Write NAME.json, its rows as NAME.csv, and the picture, if there is one, as NAME.png."""
    facts = {"caption": CAPTIONS[name], **more, "rows": [flatten(row) for row in rows]}
    made_by = {"settings": settings, "made_by": provenance("cpu")}
    write(folder / f"{name}.json", to_json(facts | made_by))
    write(folder / f"{name}.csv", to_csv(rows))
    if image is not None:
        write(folder / f"{name}.png", image)


def table1(keep: Keep, mixture: toy.Mixture) -> None:
    """Table 1."""
    rows = toy_results.table1(mixture)
    click.echo(to_text(rows))
    keep("table1", rows, centre=list(toy_results.STIFF))


def figure1(keep: Keep, mixture: toy.Mixture, dots: int, seed: int) -> None:
    """Figure 1."""
    found = toy_results.figure1(mixture, dots, seed)
    rows = [
        {"line": name, "place": place, "dominant": dominant, "subdominant": subdominant}
        for name, line in found.lines.items()
        for place, (dominant, subdominant) in zip(
            line.places.tolist(), (-line.drift).tolist(), strict=True
        )
    ]
    shares = (0.01, 0.25, 0.5, 0.75, 0.99)
    edges = torch.quantile(found.rho, torch.tensor(shares, dtype=torch.float64)).tolist()
    click.echo(f"median stiffness {edges[2]:.1f}, 99 % quantile {edges[4]:.1f}\n")
    keep(
        "figure1", rows, toy_plots.figure1(found), dots=dots,
        sigma=toy_results.levels()[toy_results.STEP].item(),
        stiffness={f"{share:.0%}": edge for share, edge in zip(shares, edges, strict=True)},
        centres={name: line.centre.tolist() for name, line in found.lines.items()},
        directions={name: line.direction.tolist() for name, line in found.lines.items()},
    )  # fmt: skip


def exact_run(mixture: toy.Mixture, samples: int, seed: int, substeps: int) -> Run:
    """The exact trajectories that Figure 2 and `helps` share."""
    networks = {name: load_network(name) for pair in NETWORKS.values() for name in pair}
    guides = {kind: (networks[main], networks[other]) for kind, (main, other) in NETWORKS.items()}
    start = toy_results.noisy_states(mixture, samples, toy_results.SIGMA_MAX, seed)
    return toy_results.exact_run(mixture, start, guides, substeps)


def figure2(keep: Keep, run: Run) -> None:
    """Figure 2."""
    rows, errors = toy_results.figure2(run), toy_results.guided_errors(run)
    click.echo(to_text(rows) + "\nmean |LTE| relative to Heun's\n" + to_text(errors))
    keep(
        "figure2", rows, toy_plots.figure2(rows, errors), states=run.rho.numel(),
        estimated_stiffness=toy_results.estimates(run), guided_errors=errors,
        networks={n: read_metadata(n)["sha256"] for pair in NETWORKS.values() for n in pair},
    )  # fmt: skip


def helps(keep: Keep, mixture: toy.Mixture, run: Run) -> None:
    """Distances to the exact end points."""
    rows = toy_results.helps(mixture, run.start, run.end)
    click.echo(to_text(rows))
    keep("helps", rows, toy_plots.helps(rows))


@click.command(context_settings=CONTEXT)
@click.option("--what", type=click.Choice([*PARTS, "all"]), default="all", help="Which part.")
@click.option("--samples", type=click.IntRange(8), default=4096, help="Exact trajectories.")
@click.option("--fast", is_flag=True, help="512 trajectories and 20 sub-steps: a quick look.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of all samples.")
@click.option("--results", default=str(ROOT / "results" / "toy"), help="Where the files go.")
@clean_exit
def main(what: str, samples: int, fast: bool, seed: int, results: str) -> None:
    """Compute the paper's toy results exactly and write numbers and figures to results/toy/."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    substeps = 20 if fast else toy_results.SUBSTEPS
    samples = min(samples, 512) if fast else samples
    settings = {
        "samples": samples, "substeps": substeps, "seed": seed, "steps": toy_results.STEPS,
        "schedule": "edm", "sigma_max": toy_results.SIGMA_MAX, "sigma_min": 0.002, "rho": 7,
    }  # fmt: skip
    keep, mixture = partial(save, Path(results), settings), toy.tree("A")
    trajectories = cache(partial(exact_run, mixture, samples, seed, substeps))
    parts: dict[str, Callable[[], None]] = {
        "table1": lambda: table1(keep, mixture),
        "figure1": lambda: figure1(keep, mixture, 4 * samples, seed),
        "figure2": lambda: figure2(keep, trajectories()),
        "helps": lambda: helps(keep, mixture, trajectories()),
    }
    for name in PARTS if what == "all" else (what,):
        start = time.process_time()
        parts[name]()
        click.echo(f"{name}: {time.process_time() - start:.0f} CPU seconds\n")
    click.echo(f"wrote {results}")


if __name__ == "__main__":
    main()
