"""What commands print cannot be lost, stop them or control the terminal."""

import io
import sys

import click

from erk.commands.cli import clean_exit


@clean_exit
def say(text):
    click.echo(text)


def test_closed_output_stops_nothing(monkeypatch):
    """M25"""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("a row")


def test_latin_1_output(monkeypatch):
    """M25: what the encoding lacks is escaped."""
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    say("– é")
    stream.flush()
    assert stream.buffer.getvalue().decode("latin-1") == "\\u2013 é\n"


def test_control_characters_are_escaped(capsys):
    """M19"""
    say("a\x07b")
    assert capsys.readouterr().out == "a\\x07b\n"
