"""Converted networks for the tests: the command, and what it leaves in a folder."""

import json

from click.testing import CliRunner

from erk.commands import convert as convert_command


def convert(*arguments):
    """Run `erk convert`; return its exit code, output and errors."""
    result = CliRunner().invoke(convert_command.main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def sentence(error):
    """Return the text of an error, which must be one sentence."""
    text = str(error.value)
    assert "\n" not in text and ".." not in text and not text.startswith("[Errno")
    return text


def change_metadata(path, **changes):
    metadata = path.with_suffix(".json")
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | changes))
