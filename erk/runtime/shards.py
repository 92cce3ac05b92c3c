"""The shard of a run that this process computes: from --shard, else from SLURM."""

import os
from collections.abc import Mapping


def shard_of(text: str | None, environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Parse --shard: '3/8' -> (3, 8), the fourth of eight shards.

    Parameters
    ----------
    text
        "I/N", or None to use SLURM's variables. "0/1" is the complete run in any environment.
    environ
        Environment with SLURM's variables. Shards are the tasks of srun (SLURM_PROCID of
        SLURM_NTASKS; ignored under torchrun, which assigns ranks itself), those of a job array
        (SLURM_ARRAY_TASK_ID), or the product of both.

    Returns
    -------
    tuple[int, int] | None
        (index, count), or None for the complete run.

    Raises
    ------
    ValueError
        For any other text, and for a job array with gaps.
    """
    if text is None:
        task, tasks = _task(environ)
        position, length = _array_position(environ)
        text = f"{position * tasks + task}/{length * tasks}"
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return (int(index), int(count)) if int(count) > 1 else None
    raise ValueError(f"--shard must be I/N with I from 0 to N - 1, such as 0/8, not '{text}'")


def _task(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return srun's index and number of tasks; the script that sbatch runs is not a task."""
    is_script = environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environ
    if is_script or "WORLD_SIZE" in environ or "SLURM_PROCID" not in environ:
        return 0, 1
    count = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    return int(environ["SLURM_PROCID"]), int(count)


def _array_position(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the position in a job array and its number of tasks. Raises ValueError."""
    task, count = (environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    if task is None or count is None or int(count) == 1:
        return 0, 1
    first = int(environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    last = int(environ.get("SLURM_ARRAY_TASK_MAX", first + int(count) - 1))
    step = max(1, (last - first) // (int(count) - 1))  # --array=0-14:2 counts in steps
    position, rest = divmod(int(task) - first, step)
    if rest or first + step * (int(count) - 1) != last:
        raise ValueError(
            "the task IDs of this SLURM array are not evenly spaced, so its shards are unknown: "
            "use --array=0-7, or give the shard as --shard I/N"
        )
    return position, int(count)
