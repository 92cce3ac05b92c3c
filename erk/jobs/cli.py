"""What all command lines share: how options are spelt and how a command ends."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..files import stoppable

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "show_default": True,
}
"""click's context settings; the originals' spellings (--w_stiff) are taken for ours (--w-stiff)."""


MOST_SEEDS = 10_000_000  # in one run; a slip of the keyboard must not fill the memory


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
    written is on the disk, a reader of its output who has left with 1.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with stoppable():
                return command(*args, **kwargs)
        except BrokenPipeError:
            _leave_pipes()
            sys.exit(1)
        except KeyboardInterrupt as stop:
            say("Stopped. Run the same command again to go on.")
            sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
        except (ValueError, OSError, MemoryError, FloatingPointError) as error:
            if os.environ.get("ERK_TRACEBACK"):
                raise
            fail(_sentence(error))

    return run


def fail(message: str) -> NoReturn:
    """Print the message and exit with code 2."""
    say(f"Error: {message}")
    sys.exit(2)


def say(message: str) -> None:
    """Print a line on stderr, if anyone is there to read it."""
    try:
        print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _leave_pipes()


def _leave_pipes() -> None:
    """Let what Python still holds for a reader who has left go nowhere, without complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:  # "[Errno 2] ..." is not a sentence
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return told + ADVICE.get(error.errno or 0, "")
    return str(error) or type(error).__name__


def parse_seeds(text: str) -> list[int]:
    """'0-9,12' -> [0, ..., 9, 12]; ValueError if it is empty, malformed or names a seed twice."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"'{text}' is not a list of seeds; write it as 0-49999 or 1,2,5-10.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"the seed range {part.strip()} runs backwards; write {high}-{low}.")
        if len(seeds) + high - low >= MOST_SEEDS:
            raise ValueError(f"'{text}' names more than {MOST_SEEDS:,} seeds; split the job.")
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"'{text}' names a seed twice; each image has one seed.")
    return seeds
