"""Of the processes of torchrun one prints what all have to say (b6)."""

import os
import signal

import pytest
from click.testing import CliRunner

from erk.commands.cli import STOPPED, clean_exit
from erk.commands.main import main


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """Return a function that becomes one of the processes of one torchrun."""

    def become(number):
        folder = tmp_path / "attempt_0" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))

    return become


def ended(error, capsys):
    """Return (exit code, what is printed) of a command that ends with the error."""

    @clean_exit
    def run():
        raise error

    with pytest.raises(SystemExit) as stop:
        run()
    return stop.value.code, capsys.readouterr().err


def stop(capsys):
    @clean_exit
    def run():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        run()
    return end.value.code, capsys.readouterr().err


def test_an_error_of_all_processes_is_printed_once(rank, capsys):
    printed = []
    for number in range(3):
        rank(number)
        printed.append(ended(FileNotFoundError("no such file"), capsys))
    assert printed == [(2, "Error: no such file\n"), (2, ""), (2, "")]
    rank(3)
    assert ended(ValueError("GPU 3 cannot be used"), capsys)[1] == "Error: GPU 3 cannot be used\n"


def test_a_process_that_is_stopped_after_the_error_of_another_is_silent(rank, capsys):
    rank(0)
    ended(ValueError("one"), capsys)
    rank(1)
    assert stop(capsys) == (128 + signal.SIGTERM, "")
    assert ended(ConnectionError("another process of this run ended early"), capsys) == (2, "")


def test_without_an_error_one_process_says_that_it_was_stopped(rank, capsys):
    rank(0)
    assert stop(capsys) == (143, f"{STOPPED}\n")
    rank(1)
    assert stop(capsys) == (143, "")


def test_a_process_that_nobody_ended_names_the_lost_one(rank, capsys):
    rank(0)
    assert "ended early" in ended(ConnectionError("another process ended early"), capsys)[1]


@pytest.mark.parametrize("words", [["generat"], ["generate", "--step", "8"], ["--foo"]])
def test_a_mistyped_word_is_named_once(words, rank):
    rank(0)
    first = CliRunner().invoke(main, words)
    rank(1)
    second = CliRunner().invoke(main, words)
    assert first.exit_code == second.exit_code == 2
    assert f"No such {'command' if words[0] == 'generat' else 'option'}" in first.stderr
    assert second.output == ""


@pytest.mark.parametrize("file", [None, "", "error.json", "/nonexistent/0/error.json"])
def test_other_launchers_lose_nothing(file, monkeypatch, capsys):
    """srun has no folder in common, and torchrun none if its logs are off."""
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if file is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    for _ in range(2):
        assert ended(ValueError("one"), capsys) == (2, "Error: one\n")
        assert stop(capsys) == (143, f"{STOPPED}\n")
