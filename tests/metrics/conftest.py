"""What the metric tests share: the judge, its reference and folders of real digits."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from metrics.extractors import Extractor, load_extractor
from metrics.references import Reference, load_reference, real_digits


@pytest.fixture(scope="session")
def extractor() -> Extractor:
    return load_extractor("digits")


@pytest.fixture(scope="session")
def reference(extractor: Extractor) -> Reference:
    return load_reference("digits", {"digits": extractor})


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    return real_digits()


@pytest.fixture
def save_pngs(tmp_path: Path) -> Callable[..., Path]:
    """Writes uint8 [N, 1, H, W] as tmp_path/name/000000.png ... and returns the folder."""

    def save(images: Tensor, name: str = "out") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for seed, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(folder / f"{seed:06d}.png")
        return folder

    return save


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a test are its own, never those of the machine's cache."""
    monkeypatch.setattr("metrics.judge.default_folder", lambda: tmp_path_factory.mktemp("store"))
