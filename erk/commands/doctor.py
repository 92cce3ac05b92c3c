"""The command `doctor`: check the installation, one line per result and what to do about it.

It checks Python and its packages, devices, disk and cache, weights, and compares the embedded
networks with golden vectors. Nothing is downloaded and nothing is changed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator

import click
import cloup

from erk.commands.checks import machine, stored
from erk.commands.checks.row import Row, guarded
from erk.commands.cli import command

Check = tuple[str, Callable[[], Iterable[Row]]]


def checks(quick: bool) -> Iterator[Check]:
    """Yield (name, check), the cheap and basic ones first."""
    yield "python", machine.python
    yield "packages", machine.packages
    yield "torch", machine.torch_build
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
    """Check the embedded networks on every device."""
    from erk.commands.checks.golden import compared  # late: needs packages, which may be broken

    for device in devices():
        yield from compared(device)


def installed() -> Iterator[Row]:
    """Check extractors and released networks of the cache on the best device."""
    from erk.commands.checks.golden import extractors, released

    *_, device = devices()
    yield from extractors(device)
    yield from released(device)


def devices() -> list[str]:
    """Return the devices that golden vectors are computed on."""
    import torch

    torch.set_num_threads(1)
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def run(quick: bool = False) -> int:
    """Run the checks, print their rows at once, and return the exit code."""
    states = []
    for name, check in checks(quick):
        for row in guarded(name, check):
            states.append(row.state)
            click.echo(f"{row.state:4}  {row.name:11}  {row.text}")
    failed, notes = states.count("FAIL"), states.count("note")
    parts = [f"{failed} to repair (FAIL)" if failed else "sound"]
    parts += [f"{notes} to read (note)"] if notes else []
    click.echo(", ".join(parts))
    return 1 if failed else 0


@command("erk doctor", "erk doctor --quick")
@cloup.option("--quick", is_flag=True, help="Skip the large files of the cache.")
def main(quick: bool) -> None:
    """Check this installation: packages, devices, disk, cache, weights, golden vectors.

    The exit code is 0 if no check fails, 1 if a line begins with FAIL.
    """
    sys.exit(run(quick))


if __name__ == "__main__":
    main()
