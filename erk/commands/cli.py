"""What all command lines share: how options are spelt and how a command ends."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn, TextIO, cast

from erk.io.atomic import stoppable

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "show_default": True,
}
"""click's context settings; the originals' spellings (--w_stiff) are taken for ours (--w-stiff)."""


LONGEST = 2000  # characters of an error's sentence


ADVICE = {
    errno.ENOSPC: "; free some space, then run the same command again",
    errno.EDQUOT: "; free some space, then run the same command again",
    errno.EMFILE: "; raise the limit (ulimit -n), then run the same command again",
    errno.ENFILE: "; close other programs, then run the same command again",
    errno.EROFS: "; choose another place",
}
"""What to do, by the system's error number, where its own words do not tell."""


def clean_exit(command: Callable[..., Any]) -> Callable[..., Any]:
    """Bad input ends a command with one sentence on stderr and exit code 2, without a traceback.

    Bad input is what raises ValueError, OSError, MemoryError or FloatingPointError.
    ERK_TRACEBACK=1 shows where. SIGINT and SIGTERM end it with 130 and 143 as soon as what is being
    written is on the disk. A reader of its output who leaves changes nothing.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        out, err = (cast(TextIO, _Steady(stream)) for stream in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(err):
            try:
                with stoppable():
                    return command(*args, **kwargs)
            except KeyboardInterrupt as stop:
                print("Stopped. Run the same command again to go on.", file=sys.stderr, flush=True)
                sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
            except (ValueError, OSError, MemoryError, FloatingPointError) as error:
                if os.environ.get("ERK_TRACEBACK"):
                    raise
                fail(sentence(error))

    return run


def fail(message: str) -> NoReturn:
    """Print the message and exit with code 2."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


class _Steady:
    """A stream that drops what nobody reads any more: a closed pipe ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._unless_closed(self._stream.write, text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return len(args[0]) if args else None


class ListingError(ValueError):
    """A sentence and a list behind it: each argument is shown as a line."""


def sentence(error: BaseException) -> str:
    """What an error says, in one line of at most ``LONGEST`` characters that a screen can show.

    Names out of a file may hold anything, line breaks and a terminal's commands included.
    """
    if isinstance(error, ListingError):
        return "\n".join(map(_line, error.args))
    told = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # "[Errno 2] ..." is not a sentence
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        told += ADVICE.get(error.errno or 0, "")
    return _line(told)


def _line(text: str) -> str:
    line = " ".join(text[: 2 * LONGEST].split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
