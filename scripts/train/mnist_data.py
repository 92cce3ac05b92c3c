"""Read MNIST from a folder of IDX files, as torchvision keeps it, or from an .npz."""

import gzip
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IDX_FILES = {
    "train": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
UINT8 = 0x08  # the type code of IDX
ADVICE = "download it with torchvision.datasets.MNIST(FOLDER, download=True) and give --data FOLDER"


class Mnist(NamedTuple):
    """Images uint8 [N, 28, 28] and classes int64 [N], for training and test."""

    train: Tensor
    train_y: Tensor
    test: Tensor
    test_y: Tensor


def read_mnist(path: Path) -> Mnist:
    """Read MNIST from torchvision's folder, a folder of IDX files (also .gz) or an .npz.

    Raises
    ------
    FileNotFoundError
        If the path or one of its files does not exist.
    ValueError
        If a file is damaged, or holds arrays of another shape or type.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {ADVICE}")
    arrays = _read_idx_folder(path) if path.is_dir() else _read_npz(path)
    for part in ("train", "test"):
        _check(path, part, arrays[part], arrays[f"{part}_y"])
    images = {part: torch.from_numpy(arrays[part].copy()) for part in ("train", "test")}
    classes = {p: torch.from_numpy(arrays[p].astype(np.int64)) for p in ("train_y", "test_y")}
    return Mnist(**images, **classes)


def _check(path: Path, part: str, images: np.ndarray, classes: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{path}: {part} is {images.dtype} {list(images.shape)}, not MNIST's images uint8 "
            f"[N, 28, 28]; {ADVICE}"
        )
    if not len(images) or classes.shape != images.shape[:1] or classes.max(initial=0) > 9:
        raise ValueError(
            f"{path}: {part}_y is {classes.dtype} {list(classes.shape)}, not one class 0 to 9 for "
            f"each of {len(images)} images; {ADVICE}"
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = ", ".join(name for name in IDX_FILES if name not in file)
            arrays = {} if missing else {name: file[name] for name in IDX_FILES}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npz ({error}); {ADVICE}") from error
    if missing:
        raise ValueError(f"{path} has no array {missing}; it needs {', '.join(IDX_FILES)}")
    return arrays


def _read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    candidates = (folder, folder / "raw", folder / "MNIST" / "raw")
    for candidate in candidates:
        paths = {name: _present(candidate, file) for name, file in IDX_FILES.items()}
        if all(paths.values()):
            return {name: _read_idx(path) for name, path in paths.items() if path}
    missing = ", ".join(IDX_FILES.values())
    raise FileNotFoundError(f"{folder} does not contain {missing} (plain or .gz); {ADVICE}")


def _present(folder: Path, file: str) -> Path | None:
    paths = (folder / file, folder / f"{file}.gz", folder / file.replace("-idx", ".idx"))
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in the IDX format: 0 0 type rank, sizes (big-endian), values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); {ADVICE}") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, UINT8]):
        raise ValueError(f"{path} is not an IDX file of bytes; {ADVICE}")
    rank = content[3]
    shape = np.frombuffer(content[4 : 4 + 4 * rank], ">u4").astype(int)
    values = np.frombuffer(content[4 + 4 * rank :], np.uint8)
    if len(shape) != rank or shape.prod() != len(values):
        raise ValueError(f"{path} is cut: {len(values)} bytes for {shape.tolist()}; {ADVICE}")
    return values.reshape(shape)
