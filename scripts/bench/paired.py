"""The harness of the benchmarks: time alternatives in alternating rounds, and report the rows."""

import contextlib
import inspect
import io
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from threadpoolctl import threadpool_limits

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import save_file
from erk.runtime.precision import RELEASED, tf32_only
from erk.runtime.provenance import provenance
from metrics.report import to_json, to_markdown, to_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "bench"
MEBI = 2**20
FIVE = "fid,fd_dinov2,precision,recall,is"  # metrics of the protocol erk-paper
Row = dict[str, Any]
Option = Callable[[Any], Any]


class Setup(NamedTuple):
    """Options common to all benchmarks."""

    device: str
    rounds: int
    threads: int


class Runs(NamedTuple):
    """Result of the last round of one alternative, and the times of all rounds."""

    value: Any
    seconds: list[float]
    cpu_seconds: list[float]  # of all threads; other programs lengthen them less than `seconds`


Timed = tuple[Any, float, float]
"""Value, wall-clock seconds, CPU seconds."""


def bench(*options: Option, packages: Sequence[str] = ()) -> Callable[[Any], click.Command]:
    """Turn a function `(setup, **options) -> rows`, perhaps a generator, into a command.

    Parameters
    ----------
    options
        Click options of this benchmark, beside --device, --rounds, --threads and --out.
    packages
        Names of packages whose versions are recorded with the rows.
    """

    def decorate(measure: Callable[..., Iterable[Row]]) -> click.Command:
        name = Path(inspect.getfile(measure)).stem

        @clean_exit
        def main(device: str, rounds: int, threads: int, out: Path, **values: Any) -> None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # of the commands and of subprocesses
            use_threads(threads)
            torch.backends.cudnn.deterministic = True  # as the commands do
            rows = []
            for row in measure(Setup(device, rounds, threads), **values):
                rows.append(row)
                record(name, rows, packages, out, device)  # if the process is ended before the rest
            click.echo(to_text(_shown(rows)), nl=False)
            click.echo(f"Wrote {out / name}.json and {name}.md.")

        main.__doc__ = measure.__doc__
        command: Any = main
        for option in reversed([*options, *COMMON]):
            command = option(command)
        return click.command(name, context_settings=CONTEXT)(command)

    return decorate


def check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available
    }  # fmt: skip
    if not available.get(device, lambda: True)():
        raise click.UsageError(f"this machine has no device '{device}'; use --device cpu.")
    return device


COMMON = [
    click.option("--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu",
                 callback=check_device),
    click.option("--rounds", default=3, type=click.IntRange(1), help="Runs of every alternative."),
    click.option("--threads", default=1, type=click.IntRange(1), help="CPU threads."),
    click.option("--out", default=RESULTS, type=Path, help="Folder of the report."),
]  # fmt: skip


def use_threads(threads: int) -> None:
    """Set the number of CPU threads of PyTorch and of the BLAS that NumPy and SciPy call."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


@contextlib.contextmanager
def as_released() -> Iterator[None]:
    """Run other projects' code with PyTorch's default switches, as their users do."""
    torch.backends.cudnn.deterministic = False
    try:
        with tf32_only(RELEASED):
            yield
    finally:
        torch.backends.cudnn.deterministic = True


def synchronize(device: str) -> None:
    """Wait until the device has finished its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def quietly(code: Callable[[], Any]) -> None:
    """Run code with its output discarded; raise ValueError with that output if it exits."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            code()
    except SystemExit as exit:
        raise ValueError(f"the timed command failed: {output.getvalue().strip()}") from exit


def once(code: Callable[[], Any]) -> Timed:
    """Run code once; return its value, wall-clock seconds and CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    value = code()
    return value, time.perf_counter() - start, time.process_time() - cpu_start


def in_turns(
    codes: Mapping[Any, Any],
    rounds: int,
    timed: Callable[[Any], Timed] = once,
) -> dict[Any, Runs]:
    """Time every alternative once per round (A B A B), so load of the machine meets all of them.

    `timed` runs and times one alternative; by default it calls it without arguments.
    """
    runs = {name: Runs(None, [], []) for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            value, seconds, cpu_seconds = timed(code)
            runs[name] = runs[name]._replace(value=value)
            runs[name].seconds.append(seconds)
            runs[name].cpu_seconds.append(cpu_seconds)
    return runs


def summary(runs: Mapping[str, Runs]) -> dict[str, Row]:
    """Return medians, median ratios to "ours" of the same round, and the times of all rounds."""
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


def resident_peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBI


def in_subprocess(start: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a new process, by "fork" or "spawn", and return its value."""
    with ProcessPoolExecutor(1, get_context(start)) as pool:
        return pool.submit(function, *arguments).result()


def record(
    name: str, rows: Sequence[Row], packages: Sequence[str], out: Path, device: str
) -> None:  # fmt: skip
    """Write the rows with their provenance to out/name.json, and to out/name.md."""
    content = provenance(device) | {"threads": torch.get_num_threads()}
    content["versions"] |= {package: version(package) for package in packages}
    head = f"`{content['command']}` at {content['commit']}, {content['device']}; medians.\n\n"
    save_file(out / f"{name}.md", head + to_markdown(_shown(rows)))
    save_file(out / f"{name}.json", to_json(content | {"rows": list(rows)}))


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without the columns of lists."""
    columns = dict.fromkeys(key for row in rows for key in row)
    shown = [c for c in columns if not any(isinstance(row.get(c), list) for row in rows)]
    return [{name: row.get(name) for name in shown} for row in rows]
