"""What a check says: a line of the doctor's table."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

SETUP = "bash scripts/setup.sh installs what fits together"
BUSY = "busy or unavailable"  # CUDA of a device that one process may use, and another does


class Row(NamedTuple):
    """One finding. A "FAIL" makes the doctor's exit code 1; a "note" only asks to be read."""

    state: str  # "ok", "note" or "FAIL"
    name: str
    text: str  # what is there and, unless all is well, what to do


def guarded(name: str, check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a check; one that breaks down is a finding, too."""
    try:
        yield from check()
    except Exception as error:  # whatever a broken installation throws
        yield failed(name, error, f"the check broke down, {told(error)}: {SETUP}")


def failed(name: str, error: BaseException, text: str) -> Row:
    """FAIL with the text; only a note where others use the device or the memory: nothing is wrong.

    The note is the error's own.
    """
    try:
        from erk.runtime.memory import is_out_of_memory  # late: needs torch, which may be broken

        is_used = is_out_of_memory(error) or BUSY in str(error)
    except Exception:
        is_used = isinstance(error, MemoryError)
    if is_used:
        advice = "not tried; run this again when others have ended"
        return Row("note", name, f"no memory free ({told(error)}): {advice}")
    return Row("FAIL", name, text)


def told(error: BaseException) -> str:
    """An error in a few words."""
    words = " ".join(str(error).split()).rstrip(".:")
    return f"{type(error).__name__} {words[:150]}".rstrip()


def few(names: Iterable[object]) -> str:
    """Names for a line: the first three, and how many there are."""
    known = list(map(str, names))
    return ", ".join(known[:3]) + (f", ... ({len(known)} in all)" if len(known) > 3 else "")
