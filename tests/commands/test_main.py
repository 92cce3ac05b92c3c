"""The command `erk`: its subcommands, their shared options, and the modules behind them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from erk.commands import calibrate, generate
from erk.commands.cli import sentence
from erk.commands.main import SUBCOMMANDS, main
from erk.method.fields import FIELDS

ROOT = Path(__file__).parents[2]


def erk(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself_with_two_examples(name):
    done = erk(name, "--help")
    assert done.exit_code == 0 and done.output.startswith(f"Usage: erk {name} ")
    examples = done.output.partition("Examples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(re.match(r"  (torchrun .* -m )?erk [a-z]", line) for line in examples)
    assert max(map(len, examples)) <= 100
    assert erk(name, "-h").output == done.output


def test_underscores_name_the_same_subcommand():
    texts = [erk(name, "--help").output for name in ("make_reference", "make-reference")]
    assert texts[0].replace("_", "-") == texts[1].replace("_", "-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generatee"], "No such command 'generatee'. Did you mean generate?\n"),
        (["make_referenc"], "Did you mean make-reference?\n"),
        (["foo"], "No such command 'foo'.\n"),
        (["generate", "--step", "8"], "No such option '--step'. Did you mean --steps?\n"),
        (["generate", "--w_stif", "1"], "Did you mean --w-stiff?\n"),
        (["generate", "--foo"], "No such option '--foo'.\n"),
    ],
)
def test_an_unknown_word_is_refused_with_the_most_similar_one(words, message):
    """b11"""
    done = erk(*words)
    assert done.exit_code == 2 and done.stderr.endswith(message)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["evaluate", "--images", "", "--ref", "digits"], "--images"),
        (["evaluate", "--images=", "--ref", "digits"], "--images"),
        (["evaluate", "--ref", ""], "--ref"),
        (["generate", "--preset", "digits", "--seeds", ""], "--seeds"),
        (["generate", "--preset", "digits", "--outdir", ""], "--outdir"),
        (["nearest", "", "--train", "digits", "--out", "a.png"], "an argument"),
    ],
)
def test_empty_values_are_refused(words, name):
    """27: --images '' measured the current folder."""
    done = erk(*words)
    assert done.exit_code == 2
    assert done.stderr.endswith(f"Error: {name} is empty: give a value, or leave it out.\n")


def test_a_memory_error_is_a_sentence():
    """27: only "MemoryError" was printed."""
    assert sentence(MemoryError()).startswith("memory ran out: ")
    text = "memory ran out (9 TiB could not be allocated): "
    assert sentence(MemoryError("Unable to allocate 9 TiB")).startswith(text)
    assert sentence(MemoryError("it does not fit: take less")) == "it does not fit: take less"


def test_the_modules_of_the_subcommands_run_as_programs():
    """torchrun -m erk.commands.generate needs no group."""
    for name in SUBCOMMANDS:
        text = (ROOT / "erk/commands" / f"{name.replace('-', '_')}.py").read_text("utf-8")
        assert text.endswith('if __name__ == "__main__":\n    main()\n'), name


def test_commands_share_the_options_of_the_sampler():
    """`calibrate` spells the solver as `generate` does; what is not given is searched (b12)."""
    options = {p.name: p.to_info_dict() for p in generate.main.params}
    shared = {p.name: p.to_info_dict() for p in calibrate.main.params if p.name in options}
    assert {"solver", "schedule", "sigma_max", "guidance", "net", "labels", "device"} <= {*shared}
    different = {name for name, info in shared.items() if info != options[name]}
    assert different <= {"seeds", "batch", "solver", "schedule", "steps"}


def test_every_setting_has_its_option():
    spelt = {opt for p in generate.main.params for opt in p.opts}
    assert {one.option for one in FIELDS if one.option} <= spelt


def test_the_first_lines_of_the_scripts_are_the_commands():
    for script in ("generate", "evaluate"):
        command = [sys.executable, ROOT / f"{script}.py", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{script}.py, version ")
