"""Documents for learners show what their code does: tutorial, how-to pages, notebook, commands."""

import math
import re
import shlex
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path

import click
import nbformat
import pytest
import torch
from click.exceptions import Exit
from click.testing import CliRunner
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python|torchrun --nproc-per-node \S+|.*--wrap \"python|"
                     r"srun [-=\w ]+ python) (\S+)\.py(.*)$", re.M)  # fmt: skip


def blocks(page):
    return BLOCK.findall((ROOT / page).read_text("utf-8"))


def same(told, shown):
    """Whether two texts have the same words; numbers may differ by rounding on other machines."""
    pairs = list(zip(told.split(), shown.split(), strict=False))
    return len(told.split()) == len(shown.split()) and all(
        a == b or (is_number(a) and is_number(b) and close(a, b)) for a, b in pairs
    )


def is_number(word):
    return re.fullmatch(r"-?\d+(\.\d+)?,?", word) is not None


def close(a, b):
    a, b = (float(word.rstrip(",")) for word in (a, b))
    return math.isclose(a, b, rel_tol=0.02, abs_tol=0.02)


def test_same_forgives_rounding_and_nothing_else():
    assert same("a 0.65, b nan", "a 0.66,\nb nan")
    assert not same("a 0.65", "a 0.70") and not same("a 0.65", "a") and not same("a 1", "b 1")


def run_commands(page):
    """Run a page's commands where we are; the output of the last."""
    done = None
    for line in "".join(block for kind, block in blocks(page) if kind == "bash").splitlines():
        _, script, *words = shlex.split(line)
        name = script.removesuffix(".py").replace("/", ".")
        done = CliRunner().invoke(import_module(name).main, words)
        assert done.exit_code == 0, done.output
    return done.output


def run_page(page, space):
    """Run a page's Python, and compare what it prints with the text block behind it."""
    told = None
    for kind, block in blocks(page):
        if kind == "python":
            assert not told, f"{page} does not show what it prints: {told}"
            out = StringIO()
            with redirect_stdout(out):
                exec(compile(block, page, "exec"), space)
            told = out.getvalue()
        elif kind == "text":
            assert same(told, block), f"{page} shows\n{block}but its code prints\n{told}"
            told = None
    return told


def test_the_tutorial_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    run_page("docs/tutorial.md", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    told = run_commands("docs/tutorial.md")
    assert (tmp_path / "on/grid.png").is_file() and "beyond noise" in told


def test_the_page_without_knobs_runs(tmp_path, monkeypatch):
    run_page("docs/howto/without-knobs.md", {})
    monkeypatch.chdir(tmp_path)
    assert "recommended: --w-stiff" in run_commands("docs/howto/without-knobs.md")
    assert len([*(tmp_path / "calibrated").glob("*.png")]) >= 16


def test_the_page_on_guidance_runs():
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def network(x, t, labels):  # the noise in data of deviation 1
        return x * (1 - table[t.round().long()]).sqrt()[:, None]

    space = {"network": network, "labels": torch.ones(3, 1), "no_labels": torch.zeros(3, 1)}
    space["noise"] = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    space["weaker"] = lambda x, sigma, labels: x / (1 + sigma**2) * 0.9
    run_page("docs/howto/guidance.md", space)
    assert space["x0"].isfinite().all() and space["trace"]["stiffness"].shape == (10, 3)


@pytest.mark.parametrize("page", ["docs/howto/solver.md", "docs/howto/data.md"])
def test_a_how_to_page_runs_and_prints_what_it_shows(page):
    assert not run_page(page, {})


def test_commands_in_the_documents_have_the_options_that_they_name(monkeypatch):
    seen = 0
    for page in PAGES:
        for script, words in COMMAND.findall(page.read_text("utf-8").replace("\\\n", " ")):
            command = import_module(script.replace("/", ".")).main
            assert isinstance(command, click.Command)
            given = shlex.split(re.split("#|&&", words)[0].replace('"', "").replace("$job", ""))
            for option in command.params if "..." in given else ():  # the rest is the reader's
                monkeypatch.setattr(option, "required", False)
            for option in command.params:  # files and folders are the reader's, too
                if isinstance(option.type, click.Path):
                    monkeypatch.setattr(option.type, "exists", False)
            with suppress(Exit):  # of --list and --list-presets
                command.make_context(script, [word for word in given if word != "..."])
            seen += 1
    assert seen > 25


def test_the_notebook_runs_and_prints_what_it_shows():
    shown = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    made = nbformat.from_dict(shown)
    NotebookClient(
        made, timeout=600, resources={"metadata": {"path": str(ROOT)}}, coalesce_streams=True
    ).execute()
    for before, after in zip(shown.cells, made.cells, strict=True):
        kinds = [[out.output_type for out in cell.get("outputs", ())] for cell in (before, after)]
        assert kinds[0] == kinds[1]
        for a, b in zip(before.get("outputs", ()), after.get("outputs", ()), strict=True):
            assert same(b.get("text", ""), a.get("text", "")), (a, b)
    assert (ROOT / "docs/tour.ipynb").stat().st_size < 150_000
