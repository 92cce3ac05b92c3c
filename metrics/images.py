"""Where images come from: a folder, a zip or an npz, read as uint8 batches in seed order."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg")
BROKEN = (  # what Pillow, zipfile and numpy raise for a damaged or locked file
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class ImageSource(NamedTuple):
    """Images that can be read one by one; nothing is decoded until ``read`` is called."""

    path: Path
    names: list[str]  # in seed order: digits in a name sort as numbers
    read: Callable[[int], np.ndarray]  # index -> uint8 [H, W, C], C = 1 (grey) or 3 (RGB)
    run: dict[str, Any]  # run.json beside the images, with its "settings"; {}: none
    labels: list[int] | None = None  # class of every image where the source stores it


def open_images(path: str | Path) -> ImageSource:
    """List the images of a folder (recursive), a zip or an npz.

    A folder or zip holds 8-bit grey or RGB pictures (png, jpg); everything else in it, and
    ``grid.png``, is ignored. A folder without pictures may hold one zip or npz instead. An npz
    holds ``images`` or ``arr_0``, uint8 [N, H, W] or [N, H, W, C], perhaps ``seeds``, ``labels``.

    Raises FileNotFoundError for a missing path, ValueError for fewer than 2 images or a file
    that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder, a zip or an npz of images")
    source = _open(path)
    if len(source.names) < 2:
        found = "no images" if not source.names else "only one image"
        raise ValueError(f"{path} holds {found}: at least 2 are needed to measure anything")
    return source


def read_batches(source: ImageSource, size: int = 256) -> Iterator[torch.Tensor]:
    """Yield the images of ``source`` in order as uint8 [B, C, H, W], B <= size.

    Raises ValueError, naming the file, for a broken image or one that differs in shape.
    """
    if size < 1:
        raise ValueError(f"the batch size must be at least 1, not {size}")
    first = source.read(0).shape
    for start in range(0, len(source.names), size):
        indices = range(start, min(start + size, len(source.names)))
        pictures = [_same_shape(source.read(i), first, source, i) for i in indices]
        yield torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def seeds_of(source: ImageSource) -> list[int] | None:
    """The seed of every image, from names such as ``000123.png``; None if a name has no seed."""
    stems = [PurePosixPath(name).stem for name in source.names]
    return [int(stem) for stem in stems] if all(stem.isdecimal() for stem in stems) else None


def labels_of(source: ImageSource, classes: int) -> list[int] | None:
    """The class of every image where it is stored or follows from run.json, else None.

    The settings in run.json tell it if the run had one ``class`` or ``labels: balanced``
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


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz whose names are ``wanted`` and there; pickled objects are refused.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in wanted if name in archive.files}
    except (*BROKEN, AttributeError) as error:
        raise ValueError(f"{path} is not a readable npz file: make it again ({error})") from error


def _open(path: Path) -> ImageSource:
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    if path.suffix == ".zip":
        return _open_zip(path)
    raise ValueError(f"{path} is no image source: give a folder, a .zip or a .npz")


def _open_folder(folder: Path) -> ImageSource:
    names = _pictures(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    archives = [p for p in folder.iterdir() if p.suffix in (".zip", ".npz")]
    ours = [p for p in archives if p.stem == "images"]  # generate.py's, beside whatever else
    if not names and len(ours or archives) == 1:
        return _open((ours or archives)[0])

    if not names and _run(folder / "run.json").get("complete") is False:
        raise ValueError(
            f"the run in {folder} is not complete: run its generate.py command again to finish it"
        )

    def read(index: int) -> np.ndarray:
        file = folder / names[index]
        return _decode(file.read_bytes, file)

    return ImageSource(folder, names, read, _run(folder / "run.json"))


def _open_zip(path: Path) -> ImageSource:
    try:
        archive = zipfile.ZipFile(path)  # open as long as the source lives
    except BROKEN as error:
        raise ValueError(f"{path} is not a readable zip: make it again ({error})") from error
    names = _pictures(archive.namelist())
    inside = zipfile.Path(archive, "run.json")
    run = _run(inside if inside.exists() else path.parent / "run.json")

    def read(index: int) -> np.ndarray:
        return _decode(lambda: archive.read(names[index]), path / names[index])

    return ImageSource(path, names, read, run)


def _open_npz(path: Path) -> ImageSource:
    arrays = read_npz(path, ("images", "arr_0", "seeds", "labels"))
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None:
        raise ValueError(f"{path} has no images: store them under the key 'images' or 'arr_0'")
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path} holds {images.dtype} {list(images.shape)}: images must be uint8 "
            "[N, H, W] or [N, H, W, C] with C = 1 or 3"
        )
    names = [f"{int(seed):06d}" for seed in arrays.get("seeds", np.arange(len(images)))]
    labels = [int(label) for label in arrays["labels"]] if "labels" in arrays else None
    if len(names) != len(images) or (labels is not None and len(labels) != len(images)):
        raise ValueError(f"{path} must hold one seed and one label per image, or none at all")
    run = _run(path.parent / "run.json")
    return ImageSource(path, names, lambda i: images[i], run, labels)


def _pictures(names: Iterable[str]) -> list[str]:
    """The names that are pictures, in natural order; grids and hidden files are none."""

    def wanted(name: str) -> bool:
        file = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in file.parts)
        return file.suffix.lower() in PICTURES and file.name != "grid.png" and not hidden

    return sorted(filter(wanted, names), key=_natural)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _decode(fetch: Callable[[], bytes], name: Path) -> np.ndarray:
    """uint8 [H, W, C] of one encoded picture."""
    try:
        with Image.open(io.BytesIO(fetch())) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image: delete or remake it") from error
    if mode not in ("L", "RGB"):
        raise ValueError(f"{name} has mode {mode}: convert it to 8-bit grey (L) or RGB")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _same_shape(
    picture: np.ndarray, first: tuple[int, ...], source: ImageSource, index: int
) -> np.ndarray:
    if picture.shape != first:
        raise ValueError(
            f"{source.path / source.names[index]} is {_shape(picture.shape)} but "
            f"{source.names[0]} is {_shape(first)}: measure images of one size and mode at a time"
        )
    return picture


def _shape(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _run(file: Path | zipfile.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: delete it or run again") from error
    if not isinstance(run, dict) or not isinstance(run.get("settings", {}), dict):
        raise ValueError(f"{file} must hold a JSON object with the settings of the run")
    return run
