"""Which share of a job is whose: --shard, srun's tasks, job arrays, and all that is not a share."""

import pytest

from erk.runtime.shards import shard_of


def srun(task, count, **more):
    return {"SLURM_PROCID": str(task), "SLURM_NTASKS": str(count)} | more


def array(task, count, first=0, last=None):
    last = first + count - 1 if last is None else last
    values = {"ID": task, "COUNT": count, "MIN": first, "MAX": last}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("3/8", {}, (3, 8)),
        ("0/1", {}, None),
        (None, {}, None),
        (None, srun(2, 4), (2, 4)),
        (None, srun(2, 4, SLURM_STEP_ID="0", ENVIRONMENT="BATCH"), (2, 4)),
        (None, srun(1, 9, SLURM_STEP_NUM_TASKS="2"), (1, 2)),  # a step smaller than its job
        (None, srun(0, 4, ENVIRONMENT="BATCH"), None),  # the script itself, before srun
        (None, srun(2, 4, WORLD_SIZE="4"), None),  # torchrun's ranks share the work themselves
        (None, srun(0, 1), None),
        (None, {"SLURM_NTASKS": "4"}, None),  # salloc's shell
        (None, array(2, 4), (2, 4)),
        (None, array(4, 4, first=1), (3, 4)),
        (None, array(6, 8, last=14), (3, 8)),  # --array=0-14:2
        (None, array(5, 2, first=3, last=5), (1, 2)),  # the two that failed, sent again
        (None, array(7, 1, first=7), None),
        (None, array(1, 3) | srun(1, 2), (3, 6)),  # tasks of srun in each of an array
        ("0/2", array(2, 4), (0, 2)),
        ("0/1", srun(2, 4), None),
    ],
)
def test_shares(text, environ, expected):
    assert shard_of(text, environ) == expected


def test_the_shares_of_an_array_of_sruns_are_all_different():
    shares = {shard_of(None, array(a, 3) | srun(t, 2)) for a in range(3) for t in range(2)}
    assert shares == {(i, 6) for i in range(6)}


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0", "0.5/2", "1/2/3"])
def test_what_is_no_share(text):
    with pytest.raises(ValueError, match="--shard must be I/N with I from 0 to N - 1"):
        shard_of(text, {})


@pytest.mark.parametrize("environ", [array(16, 3, last=32) | {"SLURM_ARRAY_TASK_ID": "3"},
                                     array(6, 3, last=17)])  # fmt: skip
def test_an_array_with_gaps_is_refused(environ):
    with pytest.raises(ValueError, match="not evenly spaced.* as --shard I/N"):
        shard_of(None, environ)
