"""Sources of images: a folder, a zip, an npz or scikit-learn's, read as uint8 in seed order."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from erk.io.untrusted import (
    DECODE_ERRORS,
    MAX_IMAGE_RATIO,
    ModeError,
    ShapeError,
    TooLargeError,
    decode_image,
    parse_json,
    read_image_file,
    read_member,
)
from metrics.npz import map_npz, read_npz

SUFFIXES = (".png", ".jpg", ".jpeg")
BUNDLED = "sklearn:"  # before the name of images that come with scikit-learn


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


class ImageSource(NamedTuple):
    """Images that can be read one by one, from several threads; nothing is decoded at opening."""

    path: Path
    names: list[str]  # in seed order: digits in a name sort as numbers
    fetch: Callable[[int], bytes]  # index -> the image's bytes as stored
    decode: Callable[..., np.ndarray]  # those bytes -> uint8 [H, W, C], C = 1 (grey) or 3 (RGB)
    run: dict[str, Any]  # run.json beside the images, with its "settings"; {}: none
    labels: list[int] | None = None  # class of every image where the source stores it


def fingerprint(source: ImageSource) -> str:
    """Return 64 hexadecimal digits of the names, sizes and times of the files."""
    files = [source.path]
    if source.path.is_dir():
        files = sorted(path for path in source.path.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def open_images(path: str | Path) -> ImageSource:
    """List the images of a folder (recursive), a zip or an npz.

    A folder or zip holds 8-bit grey or RGB images (png, jpg); everything else in it, and
    ``grid.png``, is ignored. A folder without images may hold one zip or npz instead. An npz holds
    ``images`` or ``arr_0``, uint8 [N, H, W] or [N, H, W, C], and optionally ``seeds``, ``labels``.

    Parameters
    ----------
    path : folder, .zip or .npz; or "sklearn:NAME", images that come with scikit-learn

    Raises
    ------
    FileNotFoundError
        A path that does not exist.
    ValueError
        Fewer than 2 images, or a file that cannot be read.
    """
    if str(path).startswith(BUNDLED):
        return _open_bundled(str(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder, a zip or an npz of images")
    source = _open(path)
    if len(source.names) < 2:
        count = "no images" if not source.names else "only one image"
        raise ValueError(f"{path} holds {count}: at least 2 are needed to measure anything")
    return source


def load_images(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read all images of a source: uint8 [N, C, H, W] and labels int64 [N], if it has labels."""
    source = open_images(path)
    images = [read_image(source, index) for index in range(len(source.names))]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, None if source.labels is None else torch.tensor(source.labels)


def image_name(source: ImageSource, index: int) -> str:
    """Name an image in a message: its source and its name there."""
    return f"{source.path}/{source.names[index]}"


def read_bytes(source: ImageSource, index: int) -> bytes:
    """Read the bytes of one image as stored.

    Raises BrokenImageError, naming the image, if they cannot be read, ValueError if too many.
    """
    try:
        return source.fetch(index)
    except TooLargeError as error:
        raise _too_large(source, index, error) from error
    except DECODE_ERRORS as error:
        name = image_name(source, index)
        raise BrokenImageError(
            f"{name} is not a readable image: delete it or generate it again"
        ) from error


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
    name = image_name(source, index)
    data = read_bytes(source, index) if data is None else data
    try:
        return source.decode(data, shape)
    except ShapeError:
        raise
    except TooLargeError as error:
        raise _too_large(source, index, error) from error
    except ModeError as error:
        raise ValueError(f"{name} has mode {error}: convert it to 8-bit grey (L) or RGB") from error
    except DECODE_ERRORS as error:
        raise BrokenImageError(
            f"{name} is not a readable image: delete it or generate it again"
        ) from error


def first_shape(source: ImageSource, skip_corrupt: bool = False) -> tuple[int, ...]:
    """Return (H, W, C) of the first readable image. Raises ValueError if there is none."""
    for index in range(len(source.names)):
        try:
            return read_image(source, index).shape
        except BrokenImageError:
            if not skip_corrupt:
                raise
    raise ValueError(f"{source.path} holds no readable image: nothing can be measured")


def _too_large(source: ImageSource, index: int, error: TooLargeError) -> ValueError:
    return ValueError(
        f"{image_name(source, index)} is too large to be measured ({error}): crop it or reduce it"
    )


def subset(source: ImageSource, num: int | None, seed: int = 0) -> ImageSource:
    """Draw ``num`` images without replacement, in order; None: keep all of them.

    The draw is that of EDM's and EDM2's data sets, so the same seed picks the same images.
    Raises ValueError for fewer than 2 images or more than there are.
    """
    if num is None:
        return source
    if not 2 <= num <= len(source.names):
        raise ValueError(
            f"{source.path} holds {len(source.names)} images: a subset has 2 to as many, not {num}"
        )
    chosen = np.arange(len(source.names))
    if num < len(chosen):
        np.random.RandomState(seed % (1 << 31)).shuffle(chosen)
    order = [int(i) for i in np.sort(chosen[:num])]
    return source._replace(
        names=[source.names[i] for i in order],
        fetch=lambda index: source.fetch(order[index]),
        labels=source.labels and [source.labels[i] for i in order],
    )


def seeds_of(source: ImageSource) -> list[int] | None:
    """Return the seed of every image, from names such as ``000123.png``; None if one has none."""
    stems = [PurePosixPath(name).stem for name in source.names]
    if not all(re.fullmatch("[0-9]{1,18}", stem) for stem in stems):
        return None
    return [int(stem) for stem in stems]


def labels_of(source: ImageSource, classes: int) -> list[int] | None:
    """Return the class of every image where it is stored or follows from run.json, else None.

    It follows from the run's settings if they name one ``class`` or ``labels: balanced``
    (class = seed mod classes).
    """
    if source.labels is not None:
        return source.labels
    settings = source.run.get("settings", {})
    chosen, seeds = settings.get("class"), seeds_of(source)
    if isinstance(chosen, int):
        return [chosen] * len(source.names)
    if settings.get("labels") == "balanced" and seeds is not None:
        return [seed % classes for seed in seeds]
    return None


def _open(path: Path) -> ImageSource:
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if path.suffix == ".zip":
        return _open_zip(path)
    raise ValueError(f"{path} is no image source: give a folder, a .zip or a .npz")


def _open_folder(folder: Path) -> ImageSource:
    names = _image_names(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    archives = [p for p in folder.iterdir() if p.suffix in (".zip", ".npz")]
    generated = [p for p in archives if p.stem == "images"]  # of generate.py
    if not names and len(generated or archives) == 1:
        return _open((generated or archives)[0])

    if not names and _run(folder / "run.json").get("complete") is False:
        raise ValueError(
            f"the run in {folder} is not complete: run its generate.py command again to finish it"
        )

    def fetch(index: int) -> bytes:
        return read_image_file(folder / names[index])

    table = folder / "dataset.json"
    labels = _dataset_labels(table, table.read_bytes() if table.exists() else None, names)
    return ImageSource(folder, names, fetch, decode_image, _run(folder / "run.json"), labels)


def _open_zip(path: Path) -> ImageSource:
    try:
        archive = zipfile.ZipFile(path)  # open as long as the source lives
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} is not a readable zip: create it again ({error})") from error
    names, others = _image_names(archive.namelist()), set(archive.namelist())
    twice = next((a for a, b in pairwise(sorted(names)) if a == b), None)
    if twice is not None:
        raise ValueError(f"{path} holds {twice} twice: create it again with each image once")

    def text(name: str) -> bytes | None:
        try:
            return read_member(archive, name) if name in others else None
        except ValueError as error:
            raise ValueError(f"{path} is not a readable zip: create it again ({error})") from error

    def fetch(index: int) -> bytes:
        return read_member(archive, names[index], MAX_IMAGE_RATIO)

    inside = text("run.json")
    run = _run(path.parent / "run.json") if inside is None else _parsed(path / "run.json", inside)
    labels = _dataset_labels(path / "dataset.json", text("dataset.json"), names)
    return ImageSource(path, names, fetch, decode_image, run, labels)


def _open_npz(path: Path) -> ImageSource:
    images = map_npz(path, "images")
    images = map_npz(path, "arr_0") if images is None else images
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
    names = [f"{int(seed):06d}" for seed in arrays.get("seeds", np.arange(len(pixels)))]
    labels = [int(label) for label in arrays["labels"]] if "labels" in arrays else None
    if len(names) != len(pixels) or (labels is not None and len(labels) != len(pixels)):
        raise ValueError(f"{path} must hold one seed and one label per image, or none at all")
    return ImageSource(
        path,
        names,
        lambda index: pixels[index].tobytes(),
        lambda data, _=None: np.frombuffer(data, np.uint8).reshape(pixels.shape[1:]),
        _run(path.parent / "run.json"),
        labels,
    )


def _open_bundled(address: str) -> ImageSource:
    """Open images [N, H, W] of scikit-learn; their largest value becomes 255, truncated."""
    from sklearn import datasets  # late: a second

    load = getattr(datasets, f"load_{address.removeprefix(BUNDLED)}", None)
    try:
        bunch: Any = load() if load else None
    except TypeError:  # a function that needs arguments
        bunch = None
    if not hasattr(bunch, "images") or bunch.images.ndim != 3:
        raise ValueError(f"scikit-learn has no grey images {address!r}: try sklearn:digits")
    pixels = (bunch.images * (255 / bunch.images.max())).astype(np.uint8)[..., None]
    return ImageSource(
        Path(address),
        [f"{index:06d}" for index in range(len(pixels))],
        lambda index: pixels[index].tobytes(),
        lambda data, _=None: np.frombuffer(data, np.uint8).reshape(pixels.shape[1:]),
        {},
        [int(label) for label in bunch.target],
    )


def _image_names(names: Iterable[str]) -> list[str]:
    """Keep the names of images, in natural order; leave out grids and hidden files."""

    def wanted(name: str) -> bool:
        file = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in file.parts)
        return file.suffix.lower() in SUFFIXES and file.name != "grid.png" and not hidden

    return sorted(filter(wanted, names), key=_natural)


def _natural(name: str) -> list[str | int]:
    # Longer numbers count by pieces of 18 digits: Python refuses to read very long ones.
    parts = re.split(r"([0-9]{1,18})", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _dataset_labels(file: Path, text: bytes | None, names: list[str]) -> list[int] | None:
    """Read classes from EDM's dataset.json, {"labels": [[name, class], ...] or null}."""
    if text is None:
        return None
    try:
        rows = parse_json(text)["labels"]
        known = {str(name): int(label) for name, label in rows or ()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not EDM's dataset.json: delete or correct it") from error
    return [known[name] for name in names] if all(name in known for name in names) else None


def _run(file: Path) -> dict[str, Any]:
    return _parsed(file, file.read_bytes()) if file.exists() else {}


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        run = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: delete it or run again") from error
    if not isinstance(run, dict) or not isinstance(run.get("settings", {}), dict):
        raise ValueError(f"{file} must hold a JSON object with the settings of the run")
    return run
