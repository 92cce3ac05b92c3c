"""Turn ImageNet's training pictures into a zip of square PNGs, the real images of an evaluation.

    erk prepare-imagenet --source ILSVRC/Data/CLS-LOC/train --dest img512.zip
    erk prepare-imagenet --source ILSVRC2012_img_train.tar --dest img512.zip
    erk prepare-imagenet --source train.zip --dest 50k.zip --size 64 --per-class 50

A source holds one folder (in a tar also: one tar) of pictures per class. The crop is ADM's, the
layout EDM's: 00000/img00000000.png and so on, classes by sorted folder, in dataset.json.
"""

import itertools
import json
import os
import sys
import tarfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from posixpath import normpath
from typing import Any, BinaryIO, NamedTuple

import click
import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from erk.commands.cli import CONTEXT, clean_exit
from erk.generation.images import png_bytes
from erk.io.atomic import remove_drafts, replacing
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_RATIO,
    TooLargeError,
    open_image,
    read_image_file,
    read_member,
)
from metrics.centre_crop import centre_crop
from metrics.images import PICTURES

AHEAD = 4  # pictures in the making per worker: enough to keep all busy, few in memory
MAX_PIXELS = 70_000_000  # of a picture; ImageNet's largest has 9331 x 6530


class CorruptError(ValueError):
    """A picture that cannot be decoded."""


class Pictures(NamedTuple):
    """Encoded pictures by name, of which ``read`` may be called by several threads."""

    names: list[str]  # folder/file, sorted by folder, then by file
    read: Callable[[str], bytes]


@click.command(context_settings=CONTEXT)
@click.option("--source", metavar="PATH", required=True,
              help="Folder, uncompressed tar (of tars) or zip, one folder per class.")  # fmt: skip
@click.option("--dest", metavar="FILE.zip", required=True, help="The archive to write.")
@click.option("--size", default=512, help="Width and height of the written pictures, in pixels.")
@click.option("--per-class", type=int, metavar="N", help="Only the first N pictures of each class.")
@click.option("--max-images", type=int, metavar="N", help="Only the first N pictures of all.")
@click.option("--workers", type=int, metavar="N", default=os.cpu_count() or 1,
              show_default="one per core", help="Threads that decode and encode.")  # fmt: skip
@click.option("--skip-corrupt", is_flag=True, help="Leave out pictures that cannot be decoded.")
@click.option("--overwrite", is_flag=True, help="Replace the archive if it is there already.")
@clean_exit
def main(source: str, dest: str, overwrite: bool, **options: Any) -> None:
    """Crop and scale pictures as ADM and EDM2 do and pack them as EDM does."""
    target = Path(dest)
    if target.suffix != ".zip":
        raise ValueError(f"the archive {target} must end in .zip: rename it")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: choose another --dest, or replace it with --overwrite")
    for name, value in options.items():
        if value is not None and value < 1 and not isinstance(value, bool):
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    click.echo(prepare(Path(source), target, **options))


def prepare(
    source: Path,
    dest: Path,
    *,
    size: int,
    per_class: int | None = None,
    max_images: int | None = None,
    workers: int = 1,
    skip_corrupt: bool = False,
) -> str:
    """Write the archive whole or not at all; one line on what it holds.

    Raises OSError or ValueError. The bytes depend on the pictures and ``size`` alone, not on
    ``workers`` or on the kind of source.
    """
    start = time.monotonic()
    with new_file(dest) as file:
        pictures = open_pictures(source)
        classes = class_folders(pictures.names, source)
        names = choose(pictures.names, classes, per_class)[:max_images]
        if not classes:
            click.echo(f"{source} has no two class folders: the archive has no labels", err=True)
        with zipfile.ZipFile(file, "w") as archive:
            written = write_pictures(archive, pictures, names, size, workers, skip_corrupt)
            if not written:
                raise ValueError(f"no picture of {source} can be decoded: fetch it again")
            index = {folder: number for number, folder in enumerate(classes)}
            labels = [[place(i), index.get(folder_of(name))] for i, name in enumerate(written)]
            put(archive, "dataset.json", json.dumps({"labels": labels if classes else None}))
        megabytes = file.tell() / 1e6
    rate = len(written) / (time.monotonic() - start)
    kinds = f"{len({folder_of(name) for name in written})} classes" if classes else "no labels"
    return (
        f"{dest}: {len(written)} pictures of {size}x{size}, {kinds}, {megabytes:,.1f} MB, "
        f"{len(names) - len(written)} left out, {rate:.3g} img/s"
    )


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at ``path`` when the block ends without an exception."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_drafts(path)
            file = stack.enter_context(replacing(path))
        except OSError as error:
            reason = f"cannot write to {path.parent} ({error.strerror})"
            raise OSError(f"{reason}: choose another --dest") from error
        yield file


def open_pictures(source: Path) -> Pictures:
    """List what a folder, a zip or a tar holds. Raises FileNotFoundError or ValueError."""
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a folder, a tar or a zip")
    try:
        if source.is_dir():
            found = _open_folder(source)
        else:
            found = _open_zip(source) if zipfile.is_zipfile(source) else _open_tar(source)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{source} is no readable zip or uncompressed tar ({error}): fetch or unpack it"
        ) from error
    names = [name for name in found.names if is_picture(name)]
    if "dataset.json" in found.names:
        raise ValueError(f"{source} has been prepared already: give the original pictures")
    if not names:
        raise ValueError(f"{source} holds no pictures ({', '.join(PICTURES)}): check the path")
    return Pictures(sorted(names, key=lambda name: (folder_of(name), name)), found.read)


def _open_folder(source: Path) -> Pictures:
    def fail(error: OSError) -> None:
        raise error

    files = (
        Path(folder, name).relative_to(source).as_posix()
        for folder, _, names in os.walk(source, onerror=fail, followlinks=True)
        for name in names
    )
    return Pictures(list(files), lambda name: read_image_file(source / name))


def _open_zip(source: Path) -> Pictures:
    archive = zipfile.ZipFile(source)  # open as long as the pictures are needed
    return Pictures(archive.namelist(), lambda name: read_member(archive, name, MAX_IMAGE_RATIO))


def _open_tar(source: Path) -> Pictures:
    """A tar of files or, as ImageNet comes, of one tar per class; only their places are kept."""
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(source, "r:") as outer:
        for member in filter(tarfile.TarInfo.isfile, outer):
            if not member.name.endswith(".tar"):
                places[normpath(member.name)] = (member.offset_data, member.size)
                continue
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for file in filter(tarfile.TarInfo.isfile, inner):
                    name = normpath(f"{member.name.removesuffix('.tar')}/{file.name}")
                    places[name] = (member.offset_data + file.offset_data, file.size)

    def read(name: str) -> bytes:
        start, size = places[name]
        if size > MAX_IMAGE_BYTES:
            raise TooLargeError(f"more than {MAX_IMAGE_BYTES} bytes")
        with open(source, "rb") as file:
            file.seek(start)
            return file.read(size)

    return Pictures(list(places), read)


def is_picture(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.lower().endswith(PICTURES) and not file.startswith(".")


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def class_folders(names: Sequence[str], source: Path) -> list[str]:
    """The folders of pictures, one per class, sorted; [] if there are fewer than two, as in EDM."""
    folders = sorted({folder_of(name) for name in names})
    if len(folders) < 2:
        return []
    if "" in folders or len({folder_of(folder) for folder in folders}) > 1:
        raise ValueError(
            f"{source} has pictures in {folders[0] or '.'} and in {folders[-1]}, which are not "
            "side by side: give what holds one folder per class and nothing else"
        )
    return folders


def choose(names: Sequence[str], classes: Sequence[str], per_class: int | None) -> list[str]:
    """The names, or the first ``per_class`` of every class."""
    if per_class is None:
        return list(names)
    if not classes:
        raise ValueError("--per-class needs class folders: use --max-images")
    groups = itertools.groupby(names, key=folder_of)
    return [name for _, group in groups for name in itertools.islice(group, per_class)]


def write_pictures(
    archive: zipfile.ZipFile,
    pictures: Pictures,
    names: Sequence[str],
    size: int,
    workers: int,
    skip_corrupt: bool,
) -> list[str]:
    """Crop and write pictures in order; the names of those that could be decoded."""
    written: list[str] = []
    pace = 0.5 if sys.stderr.isatty() else 20
    bar = tqdm(total=len(names), unit=" img", mininterval=pace, dynamic_ncols=True)
    with ThreadPoolExecutor(workers) as pool, bar:
        for name, made in _ahead(pool, lambda name: crop(pictures, name, size), names, workers):
            try:
                put(archive, place(len(written)), made.result())
                written.append(name)
            except CorruptError as error:
                if not skip_corrupt:
                    advice = "fetch it again, or leave such pictures out with --skip-corrupt"
                    raise ValueError(f"{error}: {advice}") from error
                bar.write(f"left out: {error}", file=sys.stderr)
            bar.update()
    return written


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], bytes], names: Iterable[str], workers: int
) -> Iterator[tuple[str, "Future[bytes]"]]:
    """Names with their work in order, of which only the next few are under way."""
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(work, name)))
        if len(waiting) > AHEAD * workers:
            yield waiting.popleft()
    yield from waiting


def crop(pictures: Pictures, name: str, size: int) -> bytes:
    """One picture as a PNG file of ``size`` x ``size`` pixels, RGB.

    Raises CorruptError, or ValueError for more than ``MAX_PIXELS``.
    """
    try:
        with open_image(pictures.read(name), MAX_PIXELS) as picture:
            pixels = np.asarray(centre_crop(picture, size))
    except TooLargeError as error:
        raise ValueError(
            f"{name} is too large ({error}): make it smaller or take it out of the source"
        ) from error
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the picture's
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptError(f"{name} cannot be decoded ({reason})") from error
    return png_bytes(pixels.transpose(2, 0, 1))


def place(index: int) -> str:
    """Where EDM keeps the picture of an index: 00012/img00012345.png."""
    return f"{index // 1000:05d}/img{index:08d}.png"


def put(archive: zipfile.ZipFile, name: str, data: bytes | str) -> None:
    """Store a file without compression and without the time."""
    archive.writestr(zipfile.ZipInfo(name), data)


if __name__ == "__main__":
    main()
