"""Which share of a job is this command's: told by --shard, else by SLURM."""

import os
from collections.abc import Mapping


def shard_of(text: str | None, environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """'3/8' -> (3, 8), the fourth of eight shares; None -> as SLURM says; None: all of the job.

    SLURM's shares are the tasks of srun (SLURM_PROCID of SLURM_NTASKS; under torchrun, which has
    its own ranks, they are not counted), those of a job array (SLURM_ARRAY_TASK_ID), or both
    multiplied. '0/1' is all of the job wherever it runs. Raises ValueError for anything else.
    """
    if text is None:
        task, tasks = _task(environ)
        place, places = _array_place(environ)
        text = f"{place * tasks + task}/{places * tasks}"
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return (int(index), int(count)) if int(count) > 1 else None
    raise ValueError(f"--shard wants I/N with I from 0 to N - 1, such as 0/8, not '{text}'")


def _task(environ: Mapping[str, str]) -> tuple[int, int]:
    """This task of srun, and how many it started; the script that sbatch runs is not a task."""
    is_script = environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environ
    if is_script or "WORLD_SIZE" in environ or "SLURM_PROCID" not in environ:
        return 0, 1
    count = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    return int(environ["SLURM_PROCID"]), int(count)


def _array_place(environ: Mapping[str, str]) -> tuple[int, int]:
    """This task's place in a job array, and how many tasks there are. Raises ValueError."""
    task, count = (environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    if task is None or count is None or int(count) == 1:
        return 0, 1
    first = int(environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    last = int(environ.get("SLURM_ARRAY_TASK_MAX", first + int(count) - 1))
    step = max(1, (last - first) // (int(count) - 1))  # --array=0-14:2 counts in steps
    place, rest = divmod(int(task) - first, step)
    if rest or first + step * (int(count) - 1) != last:
        raise ValueError(
            "the numbers of this SLURM array are not evenly spaced, so that its shares are "
            "unknown: number it --array=0-7, or name the share by --shard I/N"
        )
    return place, int(count)
