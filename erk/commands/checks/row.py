"""The rows of `erk doctor`: results of checks."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

SETUP = "bash scripts/setup.sh installs versions that fit together"
BUSY = "busy or unavailable"  # CUDA, of a device in exclusive use by another process


class Row(NamedTuple):
    """The result of a check. Any "FAIL" makes the exit code 1; a "note" is information."""

    state: str  # "ok", "note" or "FAIL"
    name: str
    text: str  # the state and, unless it is "ok", what to do


def guarded(name: str, check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a check; an exception becomes a row, too."""
    try:
        yield from check()
    except Exception as error:  # anything a broken installation raises
        yield failed(name, error, f"the check failed, {describe(error)}: {SETUP}")


def failed(name: str, error: BaseException, text: str) -> Row:
    """Return a FAIL with the text, or a note if other processes use the device or the memory."""
    try:
        from erk.runtime.memory import is_out_of_memory  # late: needs torch, which may be broken

        is_used = is_out_of_memory(error) or BUSY in str(error)
    except Exception:
        is_used = isinstance(error, MemoryError)
    if is_used:
        advice = "not checked; run this again when other processes have ended"
        return Row("note", name, f"no memory free ({describe(error)}): {advice}")
    return Row("FAIL", name, text)


def describe(error: BaseException) -> str:
    """Return the type of an error and its message, shortened."""
    words = " ".join(str(error).split()).rstrip(".:")
    return f"{type(error).__name__} {words[:150]}".rstrip()


def few(names: Iterable[object]) -> str:
    """Return the first three names and their number."""
    known = list(map(str, names))
    return ", ".join(known[:3]) + (f", ... ({len(known)} in all)" if len(known) > 3 else "")
