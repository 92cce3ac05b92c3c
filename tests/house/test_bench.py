"""The benchmarks run at a tiny size; what they measure is nobody's concern here."""

import json
import os

import pytest
from click.testing import CliRunner

from scripts.bench import decoding, evaluation, evaluator, writing

TINY = {
    writing: ["--size", "32", "--images", "8", "--sampling", "0.001"],
    evaluator: ["--extractor", "digits", "--images", "3", "--sets", "60"],
    decoding: ["--tiny"],
    evaluation: ["--fid-only", "--images", "10"],
}


@pytest.mark.filterwarnings("ignore:This DataLoader")  # torch-fidelity's
@pytest.mark.parametrize("bench", TINY, ids=lambda bench: bench.__name__.rpartition(".")[2])
def test_it_runs(bench, tmp_path):
    done = CliRunner().invoke(bench.main, [*TINY[bench], "--rounds", "2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    name = bench.__name__.rpartition(".")[2]
    assert sorted(os.listdir(tmp_path)) == [f"{name}.json", f"{name}.md"]
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert {len(row["all seconds"]) for row in rows} == {2}
    assert (tmp_path / f"{name}.md").read_text().count("\n| ") == len(rows) + 2
    if bench is writing:
        assert {row["code"] for row in rows[:4]} >= {"ours", "inline", "not written"}
    elif bench is decoding:
        assert len(rows) == 6 and rows[0]["levels apart"] == 0 < rows[1]["levels apart"]
    elif bench is evaluation:
        assert [row["code"] for row in rows] == ["ours", "torch-fidelity"]
        assert rows[0]["GFLOP"] > 10 and 0.1 < rows[0]["MB in"] < 1
    else:
        apart = [row["FD apart"] for row in rows[-3:]]  # fp32, fp16, bf16
        assert apart[0] == 0 and min(apart[1:]) > 0
