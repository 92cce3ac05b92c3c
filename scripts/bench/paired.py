"""What the benchmarks share: codes timed in turns, and a report for the screen and as json."""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from erk.runtime.provenance import provenance
from metrics.table import to_markdown, to_text, write

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bench"
THREADS = click.option("--threads", default=1, help="CPU threads of every code.")
ROUNDS = click.option("--rounds", default=3, help="Times that every code runs.")
OUT = click.option("--out", default=RESULTS, type=Path, help="Folder of the json file.")

Row = dict[str, Any]


class Runs(NamedTuple):
    """What one code returned, and what it took in every round."""

    value: Any
    seconds: list[float]
    cpu_seconds: list[float]  # of all threads: load of other programs lengthens them less


def use_threads(threads: int) -> None:
    """Let PyTorch, and what numpy and scipy call, use this many CPU threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def quietly(code: Callable[[], Any]) -> None:
    """Run it with nothing on the screen. ValueError, with what it said, if it exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code()
    except SystemExit as exit:
        raise ValueError(f"what is timed ended: {said.getvalue().strip()}") from exit


def in_turns(codes: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Runs]:
    """Run every code in every round, A B A B: what else the machine does meets all of them."""
    if rounds < 1:
        raise ValueError(f"a benchmark needs at least 1 round, not {rounds}")
    runs = {name: Runs(None, [], []) for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            runs[name] = runs[name]._replace(value=code())
            runs[name].seconds.append(time.perf_counter() - start)
            runs[name].cpu_seconds.append(time.process_time() - cpu_start)
    return runs


def summary(runs: Mapping[str, Runs]) -> dict[str, Row]:
    """Per code: medians, medians of its ratios to ours of the same round, and every round."""
    ours = runs["ours"]
    return {
        name: {
            "seconds": statistics.median(run.seconds),
            "times ours": statistics.median(map(truediv, run.seconds, ours.seconds)),
            "CPU s": statistics.median(run.cpu_seconds),
            "CPU times ours": statistics.median(map(truediv, run.cpu_seconds, ours.cpu_seconds)),
            "all seconds": run.seconds,
            "all CPU s": run.cpu_seconds,
        }
        for name, run in runs.items()
    }


def report(
    name: str,
    rows: Sequence[Row],
    packages: Sequence[str],
    out: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Print the rows; write them, with what made them, as out/name.json, and as a table, .md."""
    made_by = provenance(device) | {"threads": torch.get_num_threads()}
    made_by["versions"] |= {package: version(package) for package in packages}
    columns = dict.fromkeys(key for row in rows for key in row)
    shown = [c for c in columns if not any(isinstance(row.get(c), list) for row in rows)]
    click.echo(to_text(rows, shown), nl=False)
    head = f"`{made_by['command']}` at {made_by['commit']}, {made_by['device']}; medians.\n\n"
    write(out / f"{name}.md", head + to_markdown(rows, shown))
    path = write(out / f"{name}.json", json.dumps(made_by | {"rows": list(rows)}, indent=2) + "\n")
    click.echo(f"Written to {path}, and .md beside it")


def photographs(n: int, size: int) -> np.ndarray:
    """uint8 [n, 3, size, size] whose amplitudes fall as f^-1.7, with some noise of a sensor.

    At 512 x 512 their PNG files are about half as large as they are.
    """
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    spectrum = np.fft.rfft2(rng.normal(size=(n, 3, size, size)))
    smooth = np.fft.irfft2(spectrum / f**1.7, s=(size, size))
    smooth /= smooth.std((2, 3), keepdims=True)
    noise = rng.normal(size=smooth.shape)
    return (smooth * 50 + noise + 128).clip(0, 255).astype(np.uint8)
