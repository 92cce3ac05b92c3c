"""Put shards together: pictures, features or statistics that were made without communication.

    erk merge a b c --dest all          folders of generate.py (png, zip or npz)
    erk merge out                       one folder that shards have filled together
    erk merge cache1 cache2 --dest cache        features of --cache
    erk merge 1.npz 2.npz --dest all.npz        references of disjoint sets of images

Every seed ends up there once: a picture that lacks, or that differs between two folders, stops it.
"""

from pathlib import Path

import click

from erk.commands.cli import CONTEXT, clean_exit


@click.command(context_settings=CONTEXT)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--dest", metavar="PATH", help="Where all goes.  [default: the only SOURCE]")
@clean_exit
def main(sources: tuple[str, ...], dest: str | None) -> None:
    """Merge folders of pictures, stores of features, or references (.npz) into one.

    The sources stay as they are. After an interruption the same command goes on.
    """
    places = [_run_folder(Path(source)) for source in sources]
    lacking = next((place for place in places if not place.exists()), None)
    if lacking is not None:
        raise FileNotFoundError(f"{lacking} does not exist: give folders or .npz files")
    if len({place.resolve() for place in places}) < len(places):
        raise ValueError("a source is named twice: name each once")
    runs = [(place / "run.json").is_file() for place in places]
    if dest is None and not (len(places) == 1 and runs[0]):
        raise ValueError("say by --dest where all goes")
    if dest is not None and Path(dest).resolve() in {place.resolve() for place in places}:
        raise ValueError(f"--dest {dest} is one of the sources: choose another place")
    if all(runs):
        _merge_runs(places, dest)
    elif all(place.is_dir() for place in places) and not any(runs):
        from metrics.merging import merge_stores

        added, there = merge_stores(places, Path(str(dest)))
        click.echo(f"{dest}: {added} files of features added, {there} were there")
    elif all(place.suffix == ".npz" for place in places):
        from metrics.merging import merge_references

        click.echo(f"wrote {merge_references(places, Path(str(dest)))}")
    else:
        raise ValueError("merge folders of runs, stores of features or .npz references, not a mix")


def _run_folder(source: Path) -> Path:
    """An archive in a run's folder stands for the folder, where its manifest is."""
    is_archive = source.name in ("images.zip", "images.npz")
    return source.parent if is_archive and (source.parent / "run.json").is_file() else source


def _merge_runs(places: list[Path], dest: str | None) -> None:
    from erk.generation.merge import finish_run, merge_runs

    done = finish_run(places[0]) if dest is None else merge_runs(places, Path(dest))
    copies = f", {done.copies} of them in several folders" if done.copies else ""
    click.echo(f"{done.folder}: {done.pictures} pictures, each seed once{copies}")


if __name__ == "__main__":
    main()
