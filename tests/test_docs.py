"""The documents' code runs, and what they list is what there is."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from erk.solvers import SOLVERS
from metrics.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.mark.parametrize("name", ["docs/solvers.md"])
def test_the_code_of_a_document_runs(name):
    space = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)
    assert space["x0"].isfinite().all()


def test_the_code_on_measuring_runs(capsys):
    (block,) = blocks("docs/evaluation.md")
    space = {}
    exec(compile(block, "evaluation.md", "exec"), space)
    assert space["result"].values["fd"] > 100 and space["result"].errors["fd"] > 0
    assert "Difference(value=" in capsys.readouterr().out


def test_every_protocol_and_column_is_in_the_document():
    text = (ROOT / "docs/evaluation.md").read_text()
    for protocol in PROTOCOLS.values():
        rows = [line for line in text.splitlines() if line.startswith(f"| `{protocol.name}` |")]
        row = rows[-1]  # digits is the name of a network, too, in the table before
        for column in protocol.columns:
            assert column in row or column.removesuffix("_std") in row or column in (
                "precision", "recall"
            ), (protocol.name, column)  # fmt: skip


def test_the_readmes_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    api, own = blocks("README.md")
    space = {}
    exec(compile(api, "README.md", "exec"), space)
    assert space["images"].shape == (16, 1, 8, 8) and space["trace"]["stiffness"].shape == (8, 16)
    import torch

    x, f = torch.ones(2, 3), torch.full((2, 3), 0.5)
    space = {"x": x, "f": f, "sigma": torch.tensor(2.0), "sigma_next": torch.tensor(1.5)}
    space |= {"f_euler": f * 0.9, "x_euler": x - 0.25, "twin": None}
    exec(compile(own, "README.md", "exec"), space)
    first = space["x"]
    exec(compile(own, "README.md", "exec"), space)  # now with a twin
    assert first.shape == space["x"].shape == (2, 3)


def test_every_solver_and_option_is_in_the_table():
    text = (ROOT / "docs/solvers.md").read_text()
    for name, solver in SOLVERS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        options = inspect.signature(solver).parameters.values()
        for option in options:
            if option.kind is option.KEYWORD_ONLY and option.name not in ("sigmas", "ends"):
                assert f"`{option.name}`" in row or "those of `dpmpp`" in row


def test_the_table_of_local_errors_is_what_the_script_prints():
    made = subprocess.run(
        [sys.executable, "scripts/local_errors.py"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert made in (ROOT / "docs/theory.md").read_text()


def test_the_readme_shows_what_the_demo_measured():
    demo = (ROOT / "results/demo.md").read_text()
    table = [line for line in demo.splitlines() if line.startswith("|")]
    assert len(table) == 14
    readme = (ROOT / "README.md").read_text()
    assert all(line in readme for line in table)


def test_every_test_that_the_page_on_reliability_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 25 and {n for n in named if f"def {n}(" not in sources} == set()
