"""Is this installation sound? One line per finding, and what to do where it is not.

    erk doctor            # exit code 0: sound, 1: something FAILs, 2: bad arguments
    erk doctor --quick    # without reading large files of the cache

Looks at Python and its packages, devices, disk and cache, weights, and compares the embedded
networks with golden vectors. Nothing is downloaded and nothing is changed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator

import click

from erk.commands.checks import machine, stored
from erk.commands.checks.row import Row, guarded
from erk.commands.cli import CONTEXT

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
    from erk.commands.checks.golden import compared  # late: needs packages, which may be broken

    for device in computing():
        yield from compared(device)


def installed() -> Iterator[Row]:
    """Extractors and released networks of the cache, on the best device."""
    from erk.commands.checks.golden import extractors, released

    *_, device = computing()
    yield from extractors(device)
    yield from released(device)


def computing() -> list[str]:
    """The devices that golden vectors are computed on."""
    import torch

    torch.set_num_threads(1)
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def run(quick: bool = False) -> int:
    """Print the findings as they come; the exit code."""
    states = []
    for name, check in checks(quick):
        for row in guarded(name, check):
            states.append(row.state)
            click.echo(f"{row.state:4}  {row.name:11}  {row.text}")
    failed, notes = states.count("FAIL"), states.count("note")
    click.echo(f"{'sound' if not failed else f'{failed} to mend (FAIL)'}, {notes} to read (note)")
    return 1 if failed else 0


@click.command(context_settings=CONTEXT)
@click.option("--quick", is_flag=True, help="Leave out large files of the cache.")
def main(quick: bool) -> None:
    """Check this installation: packages, devices, disk, cache, weights, golden vectors."""
    sys.exit(run(quick))
