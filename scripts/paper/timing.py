"""Tables 6 and 7: what ERK-Guid costs in seconds and in memory, from the seed to the picture.

Both samplers run in turns, A B B A, on the same seeds, so that what else the machine does meets
both alike; the median of the differences within pairs is the cost.
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
from erk.generation.options import networks_of, open_job, settings_of
from erk.generation.sampling import ImageBatch, generate
from erk.method.point import Step
from erk.method.sampler import integrate
from erk.method.settings import Settings
from erk.models.noise import noise_and_labels
from erk.runtime.provenance import provenance
from metrics.table import cell
from scripts.bench.paired import in_turns
from scripts.paper.config import Config, Request, images_of, page_name
from scripts.paper.plan import describe, options_of_row
from scripts.paper.render import Block, Page, heading, write_page

NUM = {"paper": 100, "embedded": 150}  # images of each sampler at batch 1
LARGE = 64  # the other batch at embedded scale, where calls outweigh arithmetic at batch 1
FEWER = 10  # times fewer rounds at the large batch
REPEATS = 200  # of the correction alone
MIB = 2**20
CLOCKS = {"wall": "seconds", "CPU": "cpu_seconds"}  # name -> field of what in_turns returns

Plans = Mapping[str, Settings]
"""Row -> its settings; all rows share the networks."""


def run(config: Config, request: Request) -> list[Path]:
    """Measure the rows of the table and write it; the files written."""
    config = config._replace(num=config.num or NUM, seeds=config.seeds or dict.fromkeys(NUM, 0))
    what, num = config.options["what"], images_of(config, request)
    rounds = {config.options["batch"]: num}
    if request.scale == "embedded":
        rounds[LARGE] = max(1, num // FEWER)
    if request.dry_run:
        pairs = ", ".join(f"{n} pairs at batch {batch}" for batch, n in rounds.items())
        told = pairs if what == "seconds" else f"one batch of {' and of '.join(map(str, rounds))}"
        click.echo(f"{config.name}: {what} of Heun and ERK-Guid, {told}\n")
        click.echo(describe(config, request))
        return []
    options = [options_of_row(config, row, request) for row in config.rows]
    job = open_job(options[0])
    plans = {
        row.name: settings_of(one, networks_of(one)[2])
        for row, one in zip(config.rows, options, strict=True)
    }
    blocks, data, notes = MEASURED[what](job, plans, rounds)
    published = [
        {"row": row.name} | {name: str(value) for name, value in row.published.items()}
        for row in config.rows
    ]
    blocks.append(Block(f"Published. {config.paper}", list(published[0]), published))
    page = Page(
        page_name(config, request), heading(config, request.scale, options[0]["preset"]),
        config.kind, request.scale, blocks, data, [*notes, *config.notes],
        [provenance(job.model.device) | {"threads": torch.get_num_threads()}],
    )  # fmt: skip
    return write_page(request.results, page)


Measured = tuple[list[Block], list[dict[str, Any]], list[str]]


def seconds(job: Job, plans: Plans, rounds: Mapping[int, int]) -> Measured:
    """Table 6: seconds per image, and what the correction alone takes."""
    rows, costs, notes = [], [], []
    steps = paired_steps(job, plans)
    for batch, count in rounds.items():
        found = in_turns(batches_of(job, plans, batch, count), count)
        alone = statistics.median(times_alone(job, plans, batch)) / batch
        for clock, field in CLOCKS.items():
            each = {name: [t / batch for t in getattr(run, field)] for name, run in found.items()}
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
                "95 % interval": _told(interval), "difference per step": cost / steps,
                "correction alone per step": alone,
                "its share of an image": steps * alone / statistics.median(plain),
            })  # fmt: skip
            notes.append(f"Batch {batch}, {clock}: {_verdict(cost, interval)}")
    notes.append(f"{steps} steps of an image have a pair: there the correction is computed, and "
                 "w_con decides whether it acts. CPU: seconds of all threads of this process, "
                 "which the load of other programs lengthens less.")  # fmt: skip
    blocks = [
        Block("Seconds per image, from the seed to the picture in memory.", list(rows[0]), rows),
        Block("ERK-Guid minus Heun, seconds per image, median over pairs; beside it the correction "
              "by itself, on a step that was kept, by the wall clock.", list(costs[0]), costs),
    ]  # fmt: skip
    return blocks, [*rows, *costs], notes


def memory(job: Job, plans: Plans, rounds: Mapping[int, int]) -> Measured:
    """Table 7: the most memory that tensors take at a time."""
    rows = []
    for batch in rounds:
        codes = batches_of(job, plans, batch, 1)
        peaks = {name: peak_bytes(code, job) for name, code in codes.items()}
        plain, guided = peaks.values()
        rows += [
            {"row": name, "batch": batch, "MB": peak / MIB, "bytes": peak}
            for name, peak in peaks.items()
        ]
        rows[-1]["bytes more per image"] = (guided - plain) / batch
    how = "beside the weights, from the allocations that PyTorch's profiler saw"
    if job.model.device.type == "cuda":
        how = "weights included, torch.cuda.max_memory_allocated"
    notes = [
        f"Peak of the memory in tensors, {how}; 1 MB is 2^20 bytes. A sample is "
        f"{4 * math.prod(job.model.sample_shape)} bytes.",
    ]
    blocks = [
        Block(
            "Peak memory while pictures are made.",
            ["row", "batch", "MB", "bytes", "bytes more per image"],
            rows,
        )
    ]
    return blocks, rows, notes


MEASURED = {"seconds": seconds, "memory": memory}


def batches_of(job: Job, plans: Plans, batch: int, count: int) -> dict[str, Callable[[], Any]]:
    """Per row a function that makes the next batch; the first, which warms up, is made already."""
    seeds = range(job.seeds[0], job.seeds[0] + batch * (count + 1))
    codes = {}
    for name, settings in plans.items():
        made = generate(replace(job, settings=settings, batch=batch, noise_device=None), seeds)
        codes[name] = functools.partial(_next_images, made)
        codes[name]()
    return codes


def _next_images(made: Iterator[ImageBatch]) -> Tensor:
    """The next batch, complete: a GPU may still work on one that is only handed over."""
    return next(made).wait()


def median_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The median and its 95 % interval by the sign test; None with fewer than 6 values."""
    place = int(binom.ppf(0.025, len(values), 0.5))
    ordered = sorted(values)
    interval = (ordered[place - 1], ordered[-place]) if place else None
    return statistics.median(values), interval


def times_alone(job: Job, plans: Plans, batch: int) -> list[float]:
    """Seconds of ERK-Guid's correction of one batch's step, again and again."""
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
    """Steps of an image that have a pair: all but the first and the one to sigma = 0."""
    return len(list(plans.values())[-1].sigmas(job.model)) - 3


def peak_bytes(code: Callable[[], Any], job: Job) -> int:
    """The most bytes in tensors while ``code`` runs; on CUDA with all that was there before.

    Raises ValueError on devices that do not tell.
    """
    device = job.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        code()
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        raise ValueError(f"memory is measured on CUDA and on the CPU, not on {device.type}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's own reports
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        code()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)


def _kept_step(job: Job, plans: Plans, batch: int) -> Step:
    """A step of ERK-Guid that has a pair."""
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


def _told(interval: tuple[float, float] | None) -> str:
    return "too few pairs" if interval is None else f"{cell(interval[0])} to {cell(interval[1])}"


def _verdict(cost: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "too few pairs to tell a difference."
    if interval[0] <= 0 <= interval[1]:
        return "no difference is measurable, the interval holds 0."
    return f"ERK-Guid is {'slower' if cost > 0 else 'faster'} beyond noise."
