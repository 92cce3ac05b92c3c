"""The command `merge`: join the shards of a run, of a feature cache or of a reference."""

from pathlib import Path

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command


@command(
    "erk merge part0 part1 part2 --dest all         # folders of erk generate",
    "erk merge out                                  # one folder that shards have filled",
    "erk merge cache1 cache2 --dest cache           # features of erk evaluate --cache",
    "erk merge 1.npz 2.npz --dest all.npz           # references of disjoint sets of images",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@cloup.option(
    "--dest",
    metavar="PATH",
    help="Folder or file to write.  [default: SOURCE, if there is only one]",
)
@cloup.option("--overwrite", is_flag=True, help="Replace an existing reference.")
def main(sources: tuple[str, ...], dest: str | None, overwrite: bool) -> None:
    """Merge runs, feature caches or references (.npz) into one.

    A missing image, or one that differs between two runs, is an error. The sources are not
    changed. After an interruption the same command resumes.
    """
    paths = [_run_folder(Path(source)) for source in sources]
    _check_paths(paths, dest)
    runs = [_is_run(path) for path in paths]
    if dest is None and not (len(paths) == 1 and runs[0]):
        raise ValueError("several sources need a result: add --dest PATH")
    if all(runs):
        _merge_runs(paths, dest)
    elif all(path.is_dir() for path in paths) and not any(runs):
        from erk.io.atomic import check_writable
        from metrics.merging import merge_stores

        check_writable(Path(str(dest)))
        added, existing = merge_stores(paths, Path(str(dest)))
        click.echo(f"{dest}: {added} files of features added, {existing} existed")
    elif all(path.suffix.lower() == ".npz" for path in paths):
        from erk.io.atomic import check_target
        from metrics.merging import merge_references

        check_target(str(dest))
        shared.refuse_existing(Path(str(dest)), overwrite)
        click.echo(f"wrote {merge_references(paths, Path(str(dest)))}")
    else:
        raise ValueError("merge folders of runs, stores of features or .npz references, not a mix")


def _check_paths(paths: list[Path], dest: str | None) -> None:
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing} does not exist: give folders or .npz files")
    resolved = {path.resolve() for path in paths}
    if len(resolved) < len(paths):
        raise ValueError("a source is named twice: name each once")
    if dest is not None and resolved & {(target := Path(dest).resolve()), *target.parents}:
        raise ValueError(f"--dest {dest} is one of the sources or in one: choose another path")


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _run_folder(source: Path) -> Path:
    """Return the folder of a run for an archive in it: the manifest is in the folder."""
    is_archive = source.name in ("images.zip", "images.npz")
    return source.parent if is_archive and _is_run(source.parent) else source


def _merge_runs(paths: list[Path], dest: str | None) -> None:
    from erk.generation.merge import finish_run, merge_runs

    merged = finish_run(paths[0]) if dest is None else merge_runs(paths, Path(dest))
    copies = f", {merged.copies} of them in several folders" if merged.copies else ""
    click.echo(f"{merged.folder}: {merged.images} images, each seed once{copies}")


if __name__ == "__main__":
    main()
