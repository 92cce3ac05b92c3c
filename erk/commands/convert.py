"""The command `convert`: convert released network pickles to safetensors with JSON metadata."""

import shutil
from pathlib import Path
from typing import Any

import click
import cloup

from erk.commands.cli import command, require_suffix
from erk.commands.options import offline_option, overwrite_option, refuse_existing_network


@command(
    "erk convert edm2-img512-s-2147483-0.130.pkl edm2-s.safetensors",
    "erk convert hf://owner/repo/net.pkl net.safetensors",
    "erk convert edm2-img512-s edm2-s.safetensors   # a released preset",
    "erk convert --all --dest nets --only 'edm2-img64-*' --dry-run",
)
@click.argument("source", required=False)
@click.argument("output", type=click.Path(path_type=Path), required=False)
@cloup.option_group(
    "All released networks",
    cloup.option("--all", "everything", is_flag=True, help="Convert all released networks."),
    cloup.option("--dest", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write "
                 "to; its hashes.json records the sha256 of every file."),
    cloup.option("--only", multiple=True, metavar="PATTERN", help="Only names that match, such as "
                 "'edm2-img512-xs-*'; may be repeated."),
    cloup.option("--dry-run", is_flag=True, help="Print names and sizes and stop."),
    cloup.option("--mirror", metavar="URL", help="Server to use instead of NVIDIA's."),
)  # fmt: skip
@overwrite_option
@offline_option
def main(source: str | None, output: Path | None, everything: bool, overwrite: bool,
         offline: bool, **options: Any) -> None:  # fmt: skip
    """Write the network of SOURCE (a pickle: a path, https://, hf://owner/repo/file or a released
    preset's name) to OUTPUT.safetensors, and its metadata to OUTPUT.json.

    With --all: every released network of EDM2 and EDM. Converted files are skipped, interrupted
    downloads resume, and files that failed are named at the end.
    """
    if everything:
        if source is not None:
            raise ValueError("--all takes no SOURCE: choose files by --only PATTERN")
        if overwrite:
            raise ValueError("--all skips converted files: leave out --overwrite")
        _convert_all(offline=offline, **options)
        return
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        raise ValueError(f"--{given.replace('_', '-')} goes with --all")
    if source is None or output is None:
        raise ValueError("give SOURCE and OUTPUT.safetensors, or --all --dest DIR")
    require_suffix("the output", output, ".safetensors")
    refuse_existing_network(output, overwrite, "OUTPUT")
    from erk.io.atomic import check_target
    from erk.models.convert import convert

    check_target(output, source)
    click.echo(convert(source, output, offline))


def _convert_all(
    dest: Path | None, only: tuple[str, ...], dry_run: bool, mirror: str | None, offline: bool
) -> None:
    from erk.io.atomic import check_writable

    if dest is None and not dry_run:
        raise ValueError("--all needs --dest DIR, the folder to write to")
    if dest is not None:
        check_writable(dest)
    from erk.models.released import convert_all, released_files

    files = released_files(only, mirror)
    if dry_run or dest is None:
        click.echo(_plan(files, dest))
    else:
        convert_all(files, dest, offline, click.echo)


def _plan(files: list[Any], dest: Path | None) -> str:
    """Return what --dry-run prints: the files, their sizes and states, and the free space."""
    from erk.models.released import progress
    from metrics.report import to_text

    rows = progress(files, dest)
    rest = sum(f.size for f, row in zip(files, rows, strict=True) if row["state"] != "done")
    total = sum(file.size for file in files)
    note = (
        f"{len(files)} files, {total / 1e9:.1f} GB; {rest / 1e9:.1f} GB are left to download, and "
        "as much again is written.\nSizes are computed from the shapes of the tensors (2 bytes per "
        "number in EDM2's files, 4 in EDM's); no server was asked."
    )
    if dest is not None:
        existing = next(p for p in (dest.absolute(), *dest.absolute().parents) if p.exists())
        note += f"\nFree at {dest}: {shutil.disk_usage(existing).free / 1e9:.1f} GB."
    return f"{to_text(rows)}{note}"


if __name__ == "__main__":
    main()
