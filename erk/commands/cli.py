"""What all commands share: the spelling of options, the help page, and the way a command ends."""

import errno
import functools
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO, cast

import click
import cloup

from erk import __version__
from erk.commands.reports import is_first, is_reported
from erk.io.atomic import stoppable
from erk.io.text import printable

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "show_default": True,
}
"""click's context settings; every option may also be spelt with underscores (--w_stiff)."""


class FiniteFloat(click.FloatRange):
    """A number of at least ``min``; infinity, NaN and numbers beyond 10^9 are refused."""

    def __init__(self, min: float) -> None:
        super().__init__(min=min, max=1e9)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the text of an option."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


STOPPED = "Stopped. Run the same command again to go on."
NO_THREAD = "can't start new thread"  # Python's message
ALLOCATED = re.compile(r"allocate ([\d.]+ ?(?:bytes|[KMGTP]iB))")  # of PyTorch and NumPy
LONGEST = 2000  # characters of an error message

ADVICE = {
    errno.ENOSPC: "; free some space, then run the same command again",
    errno.EDQUOT: "; free some space, then run the same command again",
    errno.EMFILE: "; raise the limit (ulimit -n), then run the same command again",
    errno.ENFILE: "; close other programs, then run the same command again",
    errno.EROFS: "; choose another folder",
}
"""What to do about a system error, by its number, where its text does not say."""


class Arguments(click.Command):
    """A mixin: one process prints the usage errors, which name the most similar option."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments of the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            if not is_first(error.format_message()):
                raise click.exceptions.Exit(2) from error
            if isinstance(error, click.NoSuchOption):
                raise click.UsageError(
                    f"{error.message} {suggestion(error.option_name, self._options())}".strip(),
                    error.ctx,
                ) from error
            raise

    def _options(self) -> list[str]:
        return [option for one in self.params for option in one.opts if option.startswith("--")]


class Command(Arguments, cloup.Command):
    """A command with groups of options; none of its options or arguments may be empty.

    An empty path would be the current folder: such values come from unset shell variables.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line."""
        for before, word in zip(["", *args], args, strict=False):
            option, equals, value = word.partition("=")
            is_option = word.startswith("--") and equals
            if not (value if is_option else word):
                name = option if is_option else before if before.startswith("-") else "an argument"
                raise click.UsageError(f"{name} is empty: give a value, or leave it out.", ctx)
        return super().parse_args(ctx, args)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" with the most similar of the known words; "" if none is."""
    names = {one.lstrip("-"): one for one in known}
    near = get_close_matches(word.lstrip("-").replace("_", "-"), names, n=1)
    return f"Did you mean {names[near[0]]}?" if near else ""


def command(*examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that turns a function into a command.

    Parameters
    ----------
    examples : str
        Command lines, shown below the options of the help page.
    """
    lines = "".join(f"\n  {line}" for line in examples)

    def decorate(function: Callable[..., Any]) -> click.Command:
        run = click.version_option(__version__)(clean_exit(function))
        epilog = f"\b\nExamples:{lines}"
        return cloup.command(cls=Command, context_settings=CONTEXT, epilog=epilog)(run)

    return decorate


def clean_exit(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command so that bad input ends it with one sentence and exit code 2.

    Bad input is what raises ValueError, OSError or FloatingPointError; whatever comes from a lack
    of memory ends a command in the same way. With ERK_TRACEBACK=1 in the environment the traceback
    is shown. SIGINT and SIGTERM end the command
    with 130 and 143 after the file that is being written is on the disk. A closed output does not
    stop it, and names from files cannot control the terminal. Of the processes of torchrun one
    prints an error that all have, and none says that it was stopped after another one's error.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        _fill_closed_handles()
        out = cast(TextIO, _Output(sys.stdout, "\n\t"))
        err = cast(TextIO, _Output(sys.stderr, "\n\t\r"))  # \r: progress bars
        with redirect_stdout(out), redirect_stderr(err), _short_warnings():
            try:
                with stoppable():
                    return command(*args, **kwargs)
            except KeyboardInterrupt as stop:
                if not is_reported():  # else torchrun stops this process for another one's error
                    _report(STOPPED)
                sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
            except (ValueError, OSError, MemoryError, FloatingPointError, RuntimeError) as error:
                is_mistake = isinstance(error, RuntimeError) and _shortage(error) is None
                if is_mistake or os.environ.get("ERK_TRACEBACK"):
                    raise
                if isinstance(error, ConnectionError) and is_reported():
                    sys.exit(2)  # another process ended early, and has said why
                fail(sentence(error))

    return run


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print each UserWarning as one line, without its place in the source."""
    usual = warnings.formatwarning

    def line(message: Any, category: Any, *place: Any, **more: Any) -> str:
        if category is UserWarning:
            return f"\rwarning: {message}\n"  # \r: over a progress bar
        return usual(message, category, *place, **more)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def fail(message: str) -> NoReturn:
    """Print the message on stderr and exit with code 2."""
    _report(f"Error: {message}")
    sys.exit(2)


def _report(line: str) -> None:
    if is_first(line):
        print(line, file=sys.stderr, flush=True)


def require_suffix(option: str, path: str | os.PathLike[str], *suffixes: str) -> None:
    """Raise ValueError unless the path that an option gives ends in one of the suffixes."""
    if not os.fspath(path).endswith(suffixes):
        raise ValueError(f"{option} {path} must end in {' or '.join(suffixes)}; rename it")


def require_different(option: str, path: str | None, other: str, other_path: str | None) -> None:
    """Raise ValueError if two options name one file to write."""
    if path and other_path and os.path.realpath(path) == os.path.realpath(other_path):
        raise ValueError(f"{option} and {other} are both {other_path}: give two files")


def _fill_closed_handles() -> None:
    """Open the null device as stdin, stdout or stderr where these are closed.

    Else the first file that the command opens would get their number, and foreign output.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


class _Output:
    """A stream of printable text that discards its output once the reader has gone.

    ``controls`` are the control characters that pass; others, which can only come from files or
    their names, are escaped, as are characters that the encoding of the stream lacks.
    """

    def __init__(self, stream: TextIO | None, controls: str) -> None:
        if stream is None:  # it is closed
            stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
        self._stream = stream
        self._controls = controls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        text = printable(text, self._controls)
        try:
            return self._unless_closed(self._stream.write, text)
        except UnicodeEncodeError as error:
            known = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            return self._unless_closed(self._stream.write, known)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return len(args[0]) if args else None


class ListingError(ValueError):
    """An error of several lines: a sentence and a list, one argument per line."""


def sentence(error: BaseException) -> str:
    """Return the message of an error as one printable line of at most ``LONGEST`` characters.

    Names from a file may contain line breaks and terminal control sequences; they are escaped.
    """
    if isinstance(error, ListingError):
        return "\n".join(map(_line, error.args))
    shortage = _shortage(error)
    if shortage is not None:
        return _line(_without_memory(shortage))
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # "[Errno 2] ..." is not a sentence
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        message += ADVICE.get(error.errno or 0, "")
    option = getattr(error, "option", None)
    if option in _known_options():
        message += f", or add {option}"
    return _line(message)


def _known_options() -> list[str]:
    """Return the options of the command that runs."""
    context = click.get_current_context(silent=True)
    return [] if context is None else [opt for one in context.command.params for opt in one.opts]


def _shortage(error: BaseException | None) -> BaseException | None:
    """Return the lack of memory or threads that an error is or was raised from; None: neither.

    A file that cannot be loaded for lack of memory is not damaged, as a reader may believe.
    """
    while error is not None:
        if isinstance(error, MemoryError) or NO_THREAD in str(error):
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return error
        if "torch" in sys.modules:  # else no error is PyTorch's
            from erk.runtime.memory import is_out_of_memory

            if is_out_of_memory(error):
                return error
        error = error.__cause__
    return None


def _without_memory(error: BaseException) -> str:
    """Return the sentence of a lack of memory; this project's errors have theirs."""
    if NO_THREAD in str(error):
        return (
            "no thread can be started, for lack of memory or of processes: end other programs, or "
            "raise the limits (ulimit -v, ulimit -u)"
        )
    if type(error) is MemoryError and ": " in str(error):
        return str(error)
    has_batch = "--batch" in _known_options()
    advice = "give a smaller --batch" if has_batch else "process fewer or smaller images"
    amount = ALLOCATED.search(str(error))
    failed = f" ({amount[1]} could not be allocated)" if amount else ""
    return f"memory ran out{failed}: end other programs, or {advice}"


def _line(text: str) -> str:
    shown = printable(" ".join(text[: 2 * LONGEST].split()))
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
