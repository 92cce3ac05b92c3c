"""The command `erk`; `python -m erk` is the same command."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; a package that is not installed ends it with one sentence."""
    sys.argv[0] = "erk"  # the name that a run records as its command
    try:
        from erk.commands.main import main as command

        command(prog_name="erk")
    except ModuleNotFoundError as error:
        if os.environ.get("ERK_TRACEBACK") or (error.name or "erk").partition(".")[0] == "erk":
            raise
        print(f"Error: the package {error.name} is not installed: run bash scripts/setup.sh in a "
              "checkout, else install erk-guid again with pip", file=sys.stderr)  # fmt: skip
        sys.exit(2)


def hide_working_directory() -> None:
    """Remove the current directory from the import path, where `python -m` puts it first.

    A metrics.py or torch.py there would otherwise be imported in place of the installed package.
    The directory stays if erk itself was imported from it (a checkout that is not installed).
    """
    root = Path(__file__).resolve().parents[1]
    if sys.flags.safe_path or Path.cwd() == root:
        return
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


if __name__ == "__main__":
    hide_working_directory()
    main()
