"""Is this installation sound? One line per finding, and what to do where it is not.

    python scripts/doctor.py            # exit code 0: sound, 1: something FAILs, 2: bad arguments
    python scripts/doctor.py --quick    # without reading large files of the cache

Looks at Python and its packages, devices, disk and cache, weights, and compares the embedded
networks with golden vectors. Nothing is downloaded and nothing is changed.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.checks import machine, stored
from scripts.checks.row import Row, guarded

Check = tuple[str, Callable[[], Iterable[Row]]]


def checks(quick: bool) -> Iterator[Check]:
    """(name, what looks at it), the cheap and the basic ones first."""
    yield "python", machine.python
    yield "packages", machine.packages
    yield "torch", machine.torch_and_mates
    yield "pillow", machine.pillow
    yield "variables", machine.variables
    yield "devices", machine.devices
    yield "disk", stored.space
    yield "cache", stored.cache
    yield "checkpoints", stored.checkpoints
    yield "golden", golden
    if not quick:
        yield "downloads", stored.downloads
        yield "installed", installed


def golden() -> Iterator[Row]:
    """The embedded networks on every device."""
    from scripts.checks.golden import compared  # late: needs packages, which may be broken

    for device in computing():
        yield from compared(device)


def installed() -> Iterator[Row]:
    """Extractors and released networks of the cache, on the best device."""
    from scripts.checks.golden import extractors, released

    *_, device = computing()
    yield from extractors(device)
    yield from released(device)


def computing() -> list[str]:
    """The devices that golden vectors are computed on."""
    import torch

    torch.set_num_threads(1)
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def main(arguments: list[str] | None = None) -> int:
    """Print the findings as they come; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out large files of the cache")
    quick = parser.parse_args(arguments).quick
    states = []
    for name, check in checks(quick):
        for row in guarded(name, check):
            states.append(row.state)
            print(f"{row.state:4}  {row.name:11}  {row.text}", flush=True)
    failed, notes = states.count("FAIL"), states.count("note")
    print(f"{'sound' if not failed else f'{failed} to mend (FAIL)'}, {notes} to read (note)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
