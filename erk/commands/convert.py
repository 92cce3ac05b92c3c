"""Convert a released network pickle to safetensors with a JSON card.

    erk convert edm2-img512-s-2147483-0.130.pkl edm2-s.safetensors
    erk convert hf://owner/repo/net.pkl net.safetensors
    erk convert edm2-img512-s edm2-s.safetensors   # a preset's network
    erk convert --all --dest nets --dry-run        # all 63 released files: sizes
    erk convert --all --dest nets --only 'edm2-img64-*'

No code in the pickle is run, and every tensor keeps its type (float16 stays float16), so the
written network gives the same outputs bit for bit. It is read again before success is reported.
"""

from pathlib import Path
from typing import Any

import click

from erk.commands.cli import CONTEXT, clean_exit


@click.command(context_settings=CONTEXT)
@click.argument("source", required=False)
@click.argument("output", type=click.Path(path_type=Path), required=False)
@click.option("--all", "everything", is_flag=True, help="Convert all released networks.")
@click.option("--dest", type=click.Path(path_type=Path), metavar="DIR",
              help="With --all: where they go; hashes.json there has their sha256.")  # fmt: skip
@click.option("--only", multiple=True, metavar="PATTERN", help="With --all: names that fit, such "
              "as 'edm2-img512-xs-*'; may be repeated.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="With --all: print names and sizes, do nothing.")
@click.option("--mirror", metavar="URL", help="With --all: a server in the place of NVIDIA's.")
@click.option("--offline", is_flag=True, help="Download nothing; look into the cache only.")
@clean_exit
def main(source: str | None, output: Path | None, everything: bool, offline: bool,
         **options: Any) -> None:  # fmt: skip
    """Write the network of SOURCE (a path, https://, hf://owner/repo/file or a preset's name)
    to OUTPUT.safetensors, and beside it OUTPUT.json, which says what it is.

    With --all: every released network of EDM2 and EDM. What is done is skipped, a download that
    broke off goes on, and what fails is named at the end."""
    if everything:
        if source is not None:
            raise ValueError("--all takes no SOURCE: choose files by --only PATTERN")
        _convert_all(offline=offline, **options)
        return
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        raise ValueError(f"--{given.replace('_', '-')} goes with --all")
    if source is None or output is None:
        raise ValueError("give SOURCE and OUTPUT.safetensors, or --all --dest DIR")
    if output.suffix != ".safetensors":
        raise ValueError(f"the output {output} must end in .safetensors; rename it.")
    click.echo(convert(source, output, offline))


def _convert_all(
    dest: Path | None, only: tuple[str, ...], dry_run: bool, mirror: str | None, offline: bool
) -> None:
    if dest is None and not dry_run:
        raise ValueError("--all needs --dest DIR, where the files go")
    from erk.commands.released import convert_all, describe, released_files

    files = released_files(only, mirror)
    if dry_run or dest is None:
        click.echo(describe(files, dest))
    else:
        convert_all(files, dest, convert, offline)


def convert(source: str, output: Path, offline: bool = False) -> str:
    """Do it; one line that says what was written. Raises ValueError or OSError."""
    from erk.io.download import sha256_of
    from erk.models.checkpoint import build, read, write_safetensors
    from erk.models.model import address_of, fetch_checkpoint

    path = fetch_checkpoint(address_of(source), offline)
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is safetensors already; copy it together with its .json card.")
    checkpoint = read(path)
    network, _ = build(checkpoint, str(path))
    origin = {"file": path.name, "sha256": sha256_of(path)}
    write_safetensors(output, checkpoint._replace(card=checkpoint.card | {"source": origin}))
    written = read(output)
    again, _ = build(written, str(output))
    same_parts = written[:2] == checkpoint[:2]  # architecture and encoder
    if not same_parts or not same_tensors(network.state_dict(), again.state_dict()):
        output.unlink()
        output.with_suffix(".json").unlink()
        raise OSError(f"{output} does not hold what was written to it; check the disk.")
    return (
        f"{path.name} ({path.stat().st_size / 1e6:.2f} MB) -> {output} "
        f"({output.stat().st_size / 1e6:.2f} MB): {checkpoint.architecture.name}, "
        f"{len(checkpoint.tensors)} tensors, read back and equal bit for bit"
    )


def same_tensors(first: dict, second: dict) -> bool:
    """Whether both hold the same names, types, shapes and bits (NaN and -0 included)."""
    import torch

    def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        return tensor.dtype, tensor.shape, flat.numpy().tobytes()

    return first.keys() == second.keys() and all(bits(first[k]) == bits(second[k]) for k in first)


if __name__ == "__main__":
    main()
