"""Tables 6 and 7: what ERK-Guid costs in seconds and in memory, from the seed to the image.

Both samplers run in turns, A B B A, on the same seeds, so that the load of other programs affects
both alike; the cost is the median of the differences within pairs.
"""

import functools
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import sub
from pathlib import Path
from typing import Any

import click
import torch
from scipy.stats import binom
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from erk.generation.job import Job
from erk.generation.options import open_job, plan_job
from erk.generation.sampling import ImageBatch, generate
from erk.method.point import Step
from erk.method.sampler import integrate
from erk.method.settings import Settings
from erk.models.noise import noise_and_labels
from erk.runtime.provenance import provenance
from metrics.report import number
from scripts.bench.paired import in_turns
from scripts.paper.config import Cost, Request, images_of
from scripts.paper.page import Table, table_of
from scripts.paper.plan import describe, options_of_row
from scripts.paper.tables import Change, Content, verdict, write_content

LARGE = 64  # the other batch at small scales, where calls outweigh arithmetic at batch 1
FEWER = 10  # times fewer rounds at the large batch
REPEATS = 200  # of the correction alone
MIB = 2**20
CLOCKS = {"wall": "seconds", "CPU": "cpu_seconds"}  # name -> field of what in_turns returns

Plans = Mapping[str, Settings]
"""Row -> its settings; all rows share the networks."""


def run(config: Cost, request: Request) -> list[Path]:
    """Measure the rows of Table 6 or 7, write it and return the paths."""
    what, num = config.options.what, images_of(config, config.rows[0], request)
    rounds = {config.options.batch: num}
    if request.is_small:
        rounds[LARGE] = max(1, num // FEWER)
    if request.dry_run:
        pairs = ", ".join(f"{n} pairs at batch {batch}" for batch, n in rounds.items())
        batches = f"one batch of {' and of '.join(map(str, rounds))}"
        plan = pairs if what == "seconds" else batches
        click.echo(f"{config.name}: {what} of Heun and ERK-Guid, {plan}\n")
        click.echo(describe(config, request))
        return []
    options = [options_of_row(config, row, request) for row in config.rows]
    job = open_job(options[0])
    plans = {
        row.name: plan_job(one).settings for row, one in zip(config.rows, options, strict=True)
    }
    measured = MEASURED[what](job, plans, rounds)
    published = [
        {"row": row.name} | {name: str(value) for name, value in row.published.items()}
        for row in config.rows
    ]
    tables = [*measured.tables, table_of("Published.", published)]
    made_by = provenance(job.model.device) | {"threads": torch.get_num_threads()}
    content = measured._replace(tables=tables)
    return write_content(config, request, options[0]["preset"], content, made_by)


def seconds(job: Job, plans: Plans, rounds: Mapping[int, int]) -> Content:
    """Table 6: seconds per image, and those of the correction alone."""
    rows: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    changes = []
    steps = paired_steps(job, plans)
    for batch, count in rounds.items():
        runs = in_turns(batches_of(job, plans, batch, count), count)
        alone = statistics.median(times_alone(job, plans, batch)) / batch
        for clock, field in CLOCKS.items():
            each = {name: [t / batch for t in getattr(run, field)] for name, run in runs.items()}
            for name, times in each.items():
                rows.append({
                    "row": name, "batch": batch, "clock": clock, "rounds": count,
                    "avg": statistics.fmean(times), "median": statistics.median(times),
                    "min": min(times), "max": max(times),
                })  # fmt: skip
            plain, guided = each.values()
            cost, interval = median_interval(list(map(sub, guided, plain)))
            costs.append({
                "batch": batch, "clock": clock, "difference": cost,
                "95 % interval": _text(interval), "difference per step": cost / steps,
                "correction alone per step": alone,
                "its share of an image": steps * alone / statistics.median(plain),
            })  # fmt: skip
            exceeds = interval is not None and not interval[0] <= 0 <= interval[1]
            changes.append(Change(f"batch {batch}, {clock}", cost, exceeds))
    notes = [
        verdict("Seconds per image, ERK-Guid minus Heun", changes, ("lower", "higher")),
        f"{steps} steps of an image have a pair: there the correction is computed, and w_con "
        "decides whether it acts. CPU: seconds of all threads of this process, which depend less "
        "on the load of other programs.",
    ]
    tables = [
        table_of("Seconds per image, from the seed to the image in memory.", rows),
        table_of(
            "ERK-Guid minus Heun, seconds per image, median over pairs; beside it the correction "
            "alone, on a stored step, wall-clock.",
            costs,
        ),
    ]
    return Content(tables, [*rows, *costs], notes)


def memory(job: Job, plans: Plans, rounds: Mapping[int, int]) -> Content:
    """Table 7: the peak of the memory in tensors."""
    rows: list[dict[str, Any]] = []
    for batch in rounds:
        codes = batches_of(job, plans, batch, 1)
        peaks = {name: peak_bytes(code, job) for name, code in codes.items()}
        plain, guided = peaks.values()
        rows += [
            {"row": name, "batch": batch, "MB": peak / MIB, "bytes": peak}
            for name, peak in peaks.items()
        ]
        rows[-1]["bytes more per image"] = (guided - plain) / batch
    source = "weights not included, from the allocations that PyTorch's profiler records"
    if job.model.device.type == "cuda":
        source = "weights included, torch.cuda.max_memory_allocated"
    notes = [
        f"Peak of the memory in tensors, {source}; 1 MB is 2^20 bytes. A sample is "
        f"{4 * math.prod(job.model.sample_shape)} bytes.",
    ]
    columns = ["row", "batch", "MB", "bytes", "bytes more per image"]
    table = Table(caption="Peak memory while sampling images.", columns=columns, rows=rows)
    return Content([table], rows, notes)


MEASURED = {"seconds": seconds, "memory": memory}


def batches_of(job: Job, plans: Plans, batch: int, count: int) -> dict[str, Callable[[], Any]]:
    """Return a function per row that samples the next batch, after a first batch to warm up."""
    seeds = range(job.seeds[0], job.seeds[0] + batch * (count + 1))
    codes: dict[str, Callable[[], Any]] = {}
    for name, settings in plans.items():
        batches = generate(replace(job, settings=settings, batch=batch, noise_device=None), seeds)
        codes[name] = functools.partial(_next_images, batches)
        codes[name]()
    return codes


def _next_images(batches: Iterator[ImageBatch]) -> Tensor:
    """Return the next batch once a GPU has finished it."""
    return next(batches).wait()


def median_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the median and its 95 % interval (sign test); None with fewer than 6 values."""
    rank = int(binom.ppf(0.025, len(values), 0.5))
    ordered = sorted(values)
    interval = (ordered[rank - 1], ordered[-rank]) if rank else None
    return statistics.median(values), interval


def times_alone(job: Job, plans: Plans, batch: int) -> list[float]:
    """Time ERK-Guid's correction of one step of a batch REPEATS times, in seconds."""
    settings = list(plans.values())[-1]
    step, guidance = _kept_step(job, plans, batch), settings.correction(settings.sigmas())
    assert guidance is not None
    times = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            _finish(job)
            start = time.perf_counter()
            guidance(step, None)
            _finish(job)
            times.append(time.perf_counter() - start)
    return times


def paired_steps(job: Job, plans: Plans) -> int:
    """Count the steps of an image that have a pair: all but the first and that to sigma = 0."""
    return len(list(plans.values())[-1].sigmas(job.model)) - 3


def peak_bytes(code: Callable[[], Any], job: Job) -> int:
    """Return the peak of bytes in tensors while ``code`` runs; on CUDA earlier tensors count too.

    Raises ValueError on devices that do not report it.
    """
    device = job.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        code()
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        raise ValueError(f"memory is measured on CUDA and on the CPU, not on {device.type}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's reports
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        code()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)


def _kept_step(job: Job, plans: Plans, batch: int) -> Step:
    """Return a step of ERK-Guid that has a pair."""
    settings = list(plans.values())[-1]
    noise, labels = noise_and_labels(range(batch), job.model)
    drift = settings.drift(job.model, labels, job.guide)
    with torch.inference_mode():
        states = integrate(drift, noise, settings)
        return next(state.step for state in states if state.step.twin is not None)


def _finish(job: Job) -> None:
    """Wait for the device, so that the clock sees all work and nothing else."""
    if job.model.device.type == "cuda":
        torch.cuda.synchronize(job.model.device)


def _text(interval: tuple[float, float] | None) -> str:
    return (
        "too few pairs" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
    )
