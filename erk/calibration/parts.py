"""Intermediate results of a calibration on disk, so that a stopped one continues."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from erk.io.cache import cached
from erk.runtime.memory import fitting

NAME = "value"


class StoredRows(Sequence[Tensor]):
    """The rows of a tensor in a safetensors file, read when they are indexed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self.length = file.get_slice(NAME).get_shape()[0]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        with safe_open(self.path, "pt") as file:
            return file.get_slice(NAME)[index]


class Parts:
    """Tensors of one calibration, computed once: kept in a folder, or in no folder at all.

    Parameters
    ----------
    folder : Path or None
        Where the tensors are stored until `remove`; None keeps nothing.
    key : JSON
        Everything that the tensors depend on: settings and content hashes.
    version : int
        Version of the computation.
    progress : callable
        Called after every tensor.
    """

    def __init__(
        self,
        folder: Path | None = None,
        key: Any = None,
        version: int = 0,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.key, self.version, self.progress = folder, key, version, progress

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor `name`: the stored one, or what `make` computes.

        Raises MemoryError if the computation does not fit into memory.
        """
        value: Tensor = self._cached(name, make, _load)
        return value

    def keep_rows(self, name: str, make: Callable[[], Tensor]) -> Sequence[Tensor]:
        """Return the rows of the tensor `name`, which stay on disk where there is a folder."""
        value: Sequence[Tensor] = self._cached(name, make, StoredRows)
        return value

    def remove(self) -> None:
        """Delete the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _cached(self, name: str, make: Callable[[], Tensor], load: Callable[[Path], Any]) -> Any:
        def compute() -> Tensor:
            value = fitting(make)
            if value is None:
                raise MemoryError("a batch does not fit into memory: use a smaller --batch")
            return value.cpu()

        if self.folder is None:
            value: Any = compute()
        else:
            value = cached(
                [self.key, name], self.version, compute, self.folder,
                load=load, save=_encode, suffix=".safetensors",
            )  # fmt: skip
        self.progress()
        return value


def _encode(value: Any) -> bytes:
    return safetensors.torch.save({NAME: value.contiguous()})


def _load(path: Path) -> Tensor:
    return safetensors.torch.load_file(path)[NAME]
