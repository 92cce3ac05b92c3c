"""Sources of images: a folder, a zip or an npz, read as uint8 in seed order."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from erk.io.atomic import attach_path
from erk.io.folders import list_files
from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_RATIO,
    ModeError,
    RefusedError,
    ShapeError,
    TooLargeError,
    decode_image,
    image_limit,
    is_damage,
    open_archive,
    read_image_file,
    read_member,
)
from erk.method.arguments import PATHS, require
from metrics.npz import map_npz, read_npz
from metrics.side_files import RUN, Read, is_class, read_beside, read_labels, read_run

if TYPE_CHECKING:  # a mistyped path is reported before torch loads
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg")
OTHER_SUFFIXES = (  # of images that are not read
    *(".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".jpe", ".jp2"),
    *(".avif", ".heic", ".jxl"),
)
ARCHIVES = (".zip", ".npz")


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""

    option = "--skip-corrupt"  # skips it, in the commands that have it


class ImageSource(NamedTuple):
    """Images that can be read one by one, from several threads; nothing is decoded at opening."""

    path: Path
    names: list[str]  # in seed order: digits in a name sort as numbers
    fetch: Callable[..., bytes]  # (index, expected shape or None) -> the image's bytes as stored
    decode: Callable[..., np.ndarray]  # those bytes -> uint8 [H, W, C], C = 1 (grey) or 3 (RGB)
    run: dict[str, Any]  # run.json beside the images, with its "settings"; {}: none
    labels: list[int] | None = None  # class of every image where the source stores it
    notes: tuple[str, ...] = ()  # what was left out, ignored or followed in listing the images
    has_files: bool = False  # names are paths of files; else of rows of an array


def fingerprint(source: ImageSource) -> str:
    """Return 64 hexadecimal digits of the names, sizes and times of the files."""
    files = [source.path]
    if source.path.is_dir():
        files = [source.path / name for name in list_files(source.path).files]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode("utf-8", "surrogateescape")).hexdigest()


def open_images(path: str | Path, least: int = 2) -> ImageSource:
    """List the images of a folder (with its sub-folders, see `list_files`), a zip or an npz.

    A folder or zip holds 8-bit grey or RGB images (png, jpg). ``grid.png`` and files that are not
    images are ignored; images of other formats are counted in the notes. A folder without images
    may hold one zip or npz instead. An npz holds ``images`` or ``arr_0``, uint8 [N, H, W] or [N, H,
    W, C], and optionally ``seeds``, ``labels``.

    Parameters
    ----------
    path
        Folder, .zip or .npz.
    least
        Least number of images: 2 to measure, 1 to look at.

    Raises
    ------
    FileNotFoundError
        A path that does not exist.
    ValueError
        Fewer images, or a file that cannot be read.
    """
    require(isinstance(path, PATHS), "path", "a folder, a zip or an npz of images", path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder, a zip or an npz of images")
    source = _open(path)
    if len(source.names) < least:
        count = "no images" if not source.names else "only one image"
        more = "".join(f" ({note})" for note in source.notes)
        needed = "at least 2 are needed to measure anything" if least > 1 else "give another path"
        raise ValueError(f"{path} holds {count}{more}: {needed}")
    return source


def load_images(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read all images of a source: uint8 [N, C, H, W] and labels int64 [N], if it has labels."""
    import torch

    source, images = open_images(path), list[np.ndarray]()
    for index in range(len(source.names)):
        shape = images[0].shape if images else None
        try:
            images.append(read_image(source, index, shape=shape))
        except ShapeError as error:
            assert shape is not None
            raise another_shape(source, index, error.shape, shape) from None
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, None if source.labels is None else torch.tensor(source.labels)


def another_shape(
    source: ImageSource, index: int, actual: tuple[int, ...], shape: tuple[int, ...]
) -> ValueError:
    """Return the error of an image that has another shape [H, W, C] than the first."""
    return ValueError(
        f"{image_name(source, index)} is {_described(actual)} but the first image is "
        f"{_described(shape)}: resize them to one size in one mode, or measure them separately"
    )


def _described(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def image_name(source: ImageSource, index: int) -> str:
    """Name an image in a message: its source and its name there."""
    return f"{source.path}/{source.names[index]}"


def read_bytes(source: ImageSource, index: int, shape: tuple[int, ...] | None = None) -> bytes:
    """Read the bytes of one image as stored; ``shape``: the expected (H, W, C), if known.

    Raises BrokenImageError, naming the image, if it is damaged, ValueError if it is refused, and
    OSError for an error of the disk.
    """
    try:
        return source.fetch(index, shape)
    except DECODE_ERRORS as error:
        raise _named(source, index, error) from error


def read_image(
    source: ImageSource,
    index: int,
    data: bytes | None = None,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Decode one image, uint8 [H, W, C]; ``data``: its bytes, if they were read already.

    Raises ValueError, naming the image, if it is broken or neither 8-bit grey nor RGB, and
    ShapeError, before it is decoded, if it has another ``shape``.
    """
    data = read_bytes(source, index, shape) if data is None else data
    try:
        return source.decode(data, shape)
    except ShapeError:
        raise
    except DECODE_ERRORS as error:
        raise _named(source, index, error) from error


def _named(source: ImageSource, index: int, error: Exception) -> Exception:
    """Return the error to raise instead of one that does not name the image."""
    name = image_name(source, index)
    if isinstance(error, ModeError):
        return ValueError(f"{name} has mode {error}: convert it to 8-bit grey (L) or RGB")
    if isinstance(error, TooLargeError):
        return ValueError(f"{name} is too large to be measured ({error}): crop it or reduce it")
    if isinstance(error, RefusedError):
        return ValueError(f"{name} is not read: {error}")
    if not is_damage(error):
        return error
    return BrokenImageError(
        f"{name} is not a readable image ({error}): delete it or generate it again"
    )


def first_shape(source: ImageSource, skip_corrupt: bool = False) -> tuple[int, ...]:
    """Return (H, W, C) of the first readable image. Raises ValueError if there is none."""
    for index in range(len(source.names)):
        try:
            return read_image(source, index).shape
        except BrokenImageError:
            if not skip_corrupt:
                raise
    raise ValueError(f"{source.path} holds no readable image: nothing can be measured")


def _open(path: Path) -> ImageSource:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path)
    if suffix not in ARCHIVES:
        raise ValueError(f"{path} is no image source: give a folder, a .zip or a .npz")
    return _open_npz(path) if suffix == ".npz" else _open_zip(path)


def _open_folder(folder: Path) -> ImageSource:
    listing = list_files(folder)
    names, notes = image_names(listing.files)
    read = read_beside(folder)
    run = read_run(read, notes)
    if run:
        names = _of_this_run(names, notes)
    archives = [name for name in listing.files if _is_archive(name) and "/" not in name]
    generated = list(filter(_is_generated, archives))
    if not names and len(generated or archives) == 1:
        return _open(folder / (generated or archives)[0])
    labels = read_labels(read, names, notes)
    if not names and run.get("complete") is False:
        raise ValueError(
            f"the run in {folder} is not complete: run its generate.py command again to finish it"
        )

    def fetch(index: int, _: tuple[int, ...] | None = None) -> bytes:
        with attach_path(folder / names[index]):
            return read_image_file(folder / names[index])

    if archives:
        notes.append(f"{', '.join(archives[:3])} in it is not read: to measure an archive, name it")
    return ImageSource(
        *(folder, names, fetch, decode_image, run, labels),
        notes=(*listing.notes(names), *notes),
        has_files=True,
    )


def _beside_archive(path: Path) -> Read:
    """Return a reader of what lies beside an archive that has the name of `erk generate`'s.

    Another one may hold any images, so the run.json beside it says nothing of them.
    """
    return read_beside(path.parent) if _is_generated(path.name) else lambda *_: None


def _is_generated(name: str) -> bool:
    return name.partition(".")[0] == "images"


def _of_this_run(names: list[str], notes: list[str]) -> list[str]:
    """Leave out images that `erk generate` has not written; add a note.

    The folder of a run, or an archive of it, may hold others, as `out` holds `out/demo`, or copies
    in other formats: only the PNG files count, unless the run has none. Elsewhere every file is an
    image.
    """
    kept = [n for n in names if all(part.isdecimal() for part in n.split("/")[:-1])]
    if len(kept) < len(names):
        notes.append(f"images in other sub-folders are not of this run: {len(names) - len(kept)}")
    written = [name for name in kept if name.lower().endswith(".png")] or kept
    if len(written) < len(kept):
        notes.append(f"images that are no PNG are not of this run: {len(kept) - len(written)}")
    return written


def _open_zip(path: Path) -> ImageSource:
    archive = open_archive(path)  # open as long as the source lives
    (names, notes), others = image_names(archive.namelist()), set(archive.namelist())
    check_unique(names, path)
    beside = _beside_archive(path)

    def read(name: str, limit: int) -> bytes | None:
        if name not in others:
            return beside(name, limit) if name == RUN else None
        return read_member(archive, name, 0, limit=limit)

    def fetch(index: int, shape: tuple[int, ...] | None = None) -> bytes:
        return read_member(archive, names[index], MAX_IMAGE_RATIO, limit=image_limit(shape))

    run = read_run(read, notes)
    if run:
        names = _of_this_run(names, notes)
    labels = read_labels(read, names, notes)
    return ImageSource(
        *(path, names, fetch, decode_image, run, labels),
        notes=tuple(notes),
        has_files=True,
    )


def _open_npz(path: Path) -> ImageSource:
    key, images = "images", map_npz(path, "images")
    if images is None:
        key, images = "arr_0", map_npz(path, "arr_0")
    if images is None:
        raise ValueError(f"{path} has no images: store them under the key 'images' or 'arr_0'")
    pixels = images[..., None] if images.ndim == 3 else images
    is_right = pixels.ndim == 4 and pixels.dtype == np.uint8 and pixels.shape[3] in (1, 3)
    if not is_right or 0 in pixels.shape[1:]:
        raise ValueError(
            f"{path} holds {images.dtype} {list(images.shape)}: images must be uint8 "
            "[N, H, W] or [N, H, W, C] with C = 1 or 3"
        )
    arrays = read_npz(path, ("seeds", "labels"))
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{path}: {name} must be whole numbers [N], one per image")
        if len(values) != len(pixels):
            raise ValueError(f"{path} must hold one seed and one label per image, or none at all")
    names = [f"{key}[{index}]" for index in range(len(pixels))]
    if "seeds" in arrays:
        names = [f"{seed:06d}" for seed in arrays["seeds"].tolist()]
    notes: list[str] = []
    labels = arrays["labels"].tolist() if "labels" in arrays else None
    wrong = next((one for one in labels or () if not is_class(one)), None)
    if wrong is not None:
        notes.append(f"{path.name} gives no classes: {wrong} is no class 0, 1, 2, ...")
        labels = None
    run = read_run(_beside_archive(path), notes)
    return _of_array(path, names, pixels)._replace(run=run, labels=labels, notes=tuple(notes))


def _of_array(path: Path, names: list[str], pixels: np.ndarray) -> ImageSource:
    """Return the rows of uint8 [N, H, W, C] as a source."""
    return ImageSource(
        path,
        names,
        lambda index, _=None: pixels[index].tobytes(),
        lambda data, _=None: np.frombuffer(data, np.uint8).reshape(pixels.shape[1:]),
        {},
    )


def check_unique(names: Sequence[str], path: Path) -> None:
    """Raise ValueError if an archive holds an image twice."""
    twice = next((a for a, b in pairwise(sorted(names)) if a == b), None)
    if twice is not None:
        raise ValueError(f"{path} holds {twice} twice: create it again with each image once")


def image_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of images in natural order, without grids and hidden files, and notes.

    A note counts images of formats that are not read.
    """
    files = [PurePosixPath(name) for name in names]
    shown = [not any(p.startswith(".") and p != ".." for p in file.parts) for file in files]
    suffixes = [
        file.suffix.lower() if keep else "" for file, keep in zip(files, shown, strict=True)
    ]
    images = [
        name
        for name, file, suffix in zip(names, files, suffixes, strict=True)
        if suffix in SUFFIXES and file.name != "grid.png"
    ]
    others = Counter(suffix for suffix in suffixes if suffix in OTHER_SUFFIXES)
    notes = []
    if others:
        formats = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"images of other formats are not read ({formats}): convert them to PNG")
    return sorted(images, key=_natural), notes


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _natural(name: str) -> list[str | int]:
    # Longer numbers count by pieces of 18 digits: Python refuses to read very long ones.
    parts = re.split(r"([0-9]{1,18})", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
