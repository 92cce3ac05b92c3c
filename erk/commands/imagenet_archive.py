"""Archives of square PNG images from ImageNet's files, as ADM crops and EDM packs them.

The crop is ADM's, the layout EDM's: 00000/img00000000.png and so on, classes by sorted folder, in
dataset.json.
"""

import itertools
import json
import re
import sys
import tarfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import BinaryIO, NamedTuple

import click
import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from erk.generation.images import png_bytes
from erk.io.atomic import attach_path, remove_drafts, replacing
from erk.io.files import check_regular
from erk.io.folders import list_files
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_RATIO,
    ModeError,
    RefusedError,
    TooLargeError,
    check_depth,
    image_limit,
    is_damage,
    open_image,
    read_image_file,
    read_member,
)
from metrics.centre_crop import centre_crop
from metrics.images import SUFFIXES, check_unique, image_names

AHEAD = 4  # images in progress per worker: enough to keep all busy, few in memory
MAX_PIXELS = 70_000_000  # of an image; ImageNet's largest has 9331 x 6530


class Split(NamedTuple):
    """One set of ImageNet, which the names of its files tell."""

    stem: str  # a pattern
    title: str
    images: int  # in ILSVRC 2012


SPLITS = {
    "train": Split(r"n\d{8}_\d+(_n\d{8})?", "training", 1_281_167),
    "val": Split(r"ILSVRC2012_val_\d{8}(_n\d{8})?", "validation", 50_000),
}


class CorruptError(ValueError):
    """An image that cannot be decoded."""


class Source(NamedTuple):
    """Encoded images by name; several threads may call `read`."""

    names: list[str]  # folder/file, sorted by folder, then by file
    read: Callable[[str], bytes]
    notes: tuple[str, ...] = ()  # what was left out or followed


def prepare(
    source: Path,
    dest: Path,
    *,
    size: int,
    split: str | None = None,
    per_class: int | None = None,
    max_images: int | None = None,
    workers: int = 1,
    skip_corrupt: bool = False,
) -> str:
    """Crop the images of a source and write them to an archive; an error leaves no archive.

    The bytes depend only on the images and `size`, not on `workers` or the kind of source.

    Parameters
    ----------
    source : Path
        A folder, an uncompressed tar (of tars) or a zip, with one folder per class.
    dest : Path
        The .zip file to write.
    size : int
        Width and height of the written images, in pixels.
    split : str, optional
        A key of `SPLITS`: only these images, wherever they are in the source.
    per_class, max_images : int, optional
        Use only the first images of each class, or of all.
    workers : int
        Threads that decode and encode.
    skip_corrupt : bool
        Leave out images that cannot be decoded.

    Returns
    -------
    str
        One line on the archive.

    Raises
    ------
    OSError, ValueError
        The source or the destination is unusable, or an image cannot be decoded.
    """
    start = time.monotonic()
    with new_file(dest) as file:
        images = open_source(source)
        for note in images.notes:
            click.echo(f"{source}: {note}", err=True)
        of_split = images_of(split, images.names, source)
        classes = class_folders(of_split, source)
        names = choose(of_split, classes, per_class)[:max_images]
        if not classes:
            click.echo(f"{source} has no two class folders: the archive has no labels", err=True)
        with zipfile.ZipFile(file, "w") as archive:
            written = write_images(archive, images, names, size, workers, skip_corrupt)
            if not written:
                raise ValueError(f"no image of {source} can be decoded: fetch it again")
            write_labels(archive, written, classes)
        megabytes = file.tell() / 1e6
    rate = len(written) / (time.monotonic() - start)
    labels = f"{len({folder_of(name) for name in written})} classes" if classes else "no labels"
    return (
        f"{dest}: {len(written)} images of {size}x{size}, {labels}, {megabytes:,.1f} MB, "
        f"{len(names) - len(written)} left out, {rate:.3g} img/s"
    )


def write_labels(archive: zipfile.ZipFile, written: Sequence[str], classes: Sequence[str]) -> None:
    """Write dataset.json: the class of every image, or null without classes."""
    index = {folder: number for number, folder in enumerate(classes)}
    labels = [[archive_name(i), index.get(folder_of(name))] for i, name in enumerate(written)]
    put(archive, "dataset.json", json.dumps({"labels": labels if classes else None}))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` when the block ends without an exception."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_drafts(path)
            file = stack.enter_context(replacing(path))
        except OSError as error:
            reason = f"cannot write to {path.parent} ({error.strerror})"
            raise OSError(f"{reason}: choose another --dest") from error
        yield file


def open_source(source: Path) -> Source:
    """List the images of a folder, a zip or a tar. Raises FileNotFoundError or ValueError."""
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a folder, a tar or a zip")
    try:
        if source.is_dir():
            listed = _open_folder(source)
        else:
            check_regular(source)
            listed = _open_zip(source) if zipfile.is_zipfile(source) else _open_tar(source)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{source} is no readable zip or uncompressed tar ({error}): fetch or unpack it"
        ) from error
    names, notes = image_names(listed.names)
    check_unique(names, source)
    if "dataset.json" in listed.names:
        raise ValueError(f"{source} has been prepared already: give the original images")
    if not names:
        raise ValueError(f"{source} holds no images ({', '.join(SUFFIXES)}): check the path")
    names.sort(key=lambda name: (folder_of(name), name))
    return Source(names, listed.read, (*listed.notes, *notes))


def _open_folder(source: Path) -> Source:
    listing = list_files(source)

    def read(name: str) -> bytes:
        with attach_path(source / name):
            return read_image_file(source / name)

    return Source(listing.files, read, tuple(listing.notes(image_names(listing.files)[0])))


def _open_zip(source: Path) -> Source:
    archive = zipfile.ZipFile(source)  # open as long as images are read

    def read(name: str) -> bytes:
        return read_member(archive, name, MAX_IMAGE_RATIO, limit=image_limit(None))

    return Source(archive.namelist(), read)


def _open_tar(source: Path) -> Source:
    """List a tar of files or, as ImageNet is distributed, of one tar per class."""
    members: dict[str, tuple[int, int]] = {}
    links: list[str] = []
    with tarfile.open(source, "r:") as outer:
        for member in _files_of(outer, links):
            if not member.name.endswith(".tar"):
                members[normpath(member.name)] = (member.offset_data, member.size)
                continue
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for file in _files_of(inner, links):
                    name = normpath(f"{member.name.removesuffix('.tar')}/{file.name}")
                    members[name] = (member.offset_data + file.offset_data, file.size)

    def read(name: str) -> bytes:
        start, size = members[name]
        if size > MAX_IMAGE_BYTES:
            raise TooLargeError(f"more than {MAX_IMAGE_BYTES} bytes")
        with open(source, "rb") as file:
            file.seek(start)
            return file.read(size)

    count = len(links)
    notes = (f"{count} links in it are not followed: {links[0]}, ...",) if count else ()
    return Source(list(members), read, notes)


def _files_of(archive: tarfile.TarFile, links: list[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar; add the names of links, which tar stores without their content."""
    for member in archive:
        if member.isfile():
            yield member
        elif member.issym() or member.islnk():
            links.append(member.name)


def folder_of(name: str) -> str:
    """Return the folder of a name, "" at the top."""
    return name.rpartition("/")[0]


def images_of(split: str | None, names: list[str], source: Path) -> list[str]:
    """Return the names of one split, or all if they are not of several."""
    found = {
        key: [name for name in names if re.fullmatch(one.stem, PurePosixPath(name).stem)]
        for key, one in SPLITS.items()
    }
    if split is None:
        if all(found.values()):
            raise ValueError(
                f"{source} holds training and validation images: choose --split train or val"
            )
        return names
    chosen, one = found[split], SPLITS[split]
    if not chosen:
        raise ValueError(
            f"{source} holds no {one.title} images of ImageNet, whose names match {one.stem}: "
            "give another --source, or leave out --split"
        )
    if len(chosen) != one.images:
        click.echo(
            f"{source} holds {len(chosen):,} {one.title} images, ImageNet has {one.images:,}",
            err=True,
        )
    return chosen


def class_folders(names: Sequence[str], source: Path) -> list[str]:
    """Return the class folders, sorted; [] if there are fewer than two, as in EDM."""
    folders = sorted({folder_of(name) for name in names})
    if len(folders) < 2:
        return []
    if "" in folders or len({folder_of(folder) for folder in folders}) > 1:
        raise ValueError(
            f"{source} has images in {folders[0] or '.'} and in {folders[-1]}, which are not "
            "side by side: give what holds one folder per class and nothing else"
        )
    return folders


def choose(names: Sequence[str], classes: Sequence[str], per_class: int | None) -> list[str]:
    """Return the names, or only the first `per_class` of every class."""
    if per_class is None:
        return list(names)
    if not classes:
        raise ValueError("--per-class needs class folders: use --max-images")
    groups = itertools.groupby(names, key=folder_of)
    return [name for _, group in groups for name in itertools.islice(group, per_class)]


def write_images(
    archive: zipfile.ZipFile,
    images: Source,
    names: Sequence[str],
    size: int,
    workers: int,
    skip_corrupt: bool,
) -> list[str]:
    """Crop and write images in order; return the names of those that could be decoded."""
    written: list[str] = []
    pace = 0.5 if sys.stderr.isatty() else 20
    bar = tqdm(total=len(names), unit=" img", mininterval=pace, dynamic_ncols=True)
    with ThreadPoolExecutor(workers) as pool, bar:
        for name, result in _ahead(pool, lambda name: crop(images, name, size), names, workers):
            try:
                put(archive, archive_name(len(written)), result.result())
                written.append(name)
            except CorruptError as error:
                if not skip_corrupt:
                    advice = "fetch it again, or leave out such images with --skip-corrupt"
                    raise ValueError(f"{error}: {advice}") from error
                bar.write(f"left out: {error}", file=sys.stderr)
            bar.update()
    return written


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], bytes], names: Iterable[str], workers: int
) -> Iterator[tuple[str, "Future[bytes]"]]:
    """Yield names with their results in order, computed at most a few names ahead."""
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(work, name)))
        if len(waiting) > AHEAD * workers:
            yield waiting.popleft()
    yield from waiting


def crop(images: Source, name: str, size: int) -> bytes:
    """Return an image as a PNG file of `size` x `size` pixels, RGB.

    Raises CorruptError, or ValueError for more than `MAX_PIXELS` or 8 bits per channel.
    """
    try:
        data = images.read(name)
        with open_image(data, MAX_PIXELS) as image:
            check_depth(image, data)
            pixels = np.asarray(centre_crop(image, size))
    except TooLargeError as error:
        raise ValueError(
            f"{name} is too large ({error}): make it smaller or take it out of the source"
        ) from error
    except ModeError as error:
        raise ValueError(f"{name} has mode {error}: convert it to 8 bits per channel") from error
    except RefusedError as error:
        raise ValueError(f"{name} is refused: {error}") from error
    except DECODE_ERRORS as error:
        if not is_damage(error):
            raise
        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptError(f"{name} cannot be decoded ({reason})") from error
    return png_bytes(pixels.transpose(2, 0, 1))


def archive_name(index: int) -> str:
    """Return EDM's name of the image of an index: 00012/img00012345.png."""
    return f"{index // 1000:05d}/img{index:08d}.png"


def put(archive: zipfile.ZipFile, name: str, data: bytes | str) -> None:
    """Store a file without compression and without a time stamp."""
    archive.writestr(zipfile.ZipInfo(name), data)
