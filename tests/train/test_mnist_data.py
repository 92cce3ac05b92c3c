"""MNIST is read from IDX files, from torchvision's folder and from an .npz; other data is not."""

import gzip
import struct

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from scripts.train import mnist
from scripts.train.mnist_data import IDX_FILES, read_mnist

RNG = np.random.default_rng(0)
ARRAYS = {
    "train": RNG.integers(0, 256, (5, 28, 28), np.uint8),
    "train_y": np.array([0, 1, 2, 3, 9], np.uint8),
    "test": RNG.integers(0, 256, (2, 28, 28), np.uint8),
    "test_y": np.array([4, 5], np.uint8),
}


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx(folder, compress=False):
    folder.mkdir(parents=True)
    for name, file in IDX_FILES.items():
        content = idx(ARRAYS[name])
        path = folder / (f"{file}.gz" if compress else file)
        path.write_bytes(gzip.compress(content) if compress else content)


def write_npz(path, **changes):
    np.savez(path, **{k: v for k, v in (ARRAYS | changes).items() if v is not None})


@pytest.mark.parametrize("kind", ["npz", "idx", "gz", "torchvision"])
def test_every_format_gives_the_same_digits(tmp_path, kind):
    path = tmp_path / "data"
    if kind == "npz":
        path = tmp_path / "mnist.npz"
        write_npz(path)
    else:
        write_idx(path / "MNIST" / "raw" if kind == "torchvision" else path, kind == "gz")
    content = read_mnist(path)
    assert content.train.dtype == torch.uint8 and content.train_y.dtype == torch.int64
    for name, array in ARRAYS.items():
        assert np.array_equal(getattr(content, name).numpy(), array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ARRAYS["train"][:, :27]}, r"train is uint8 \[5, 27, 28\]"),
        ({"test": ARRAYS["test"].astype(np.float32)}, "test is float32"),
        ({"train_y": ARRAYS["train_y"][:3]}, "train_y"),
        ({"test_y": np.array([4, 10], np.uint8)}, "test_y"),
        ({"test_y": None}, "has no array test_y"),
    ],
)
def test_arrays_that_are_not_mnist_are_refused(tmp_path, changes, message):
    write_npz(tmp_path / "mnist.npz", **changes)
    with pytest.raises(ValueError, match=message):
        read_mnist(tmp_path / "mnist.npz")


def test_damaged_and_absent_files_end_with_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; download it with torchvision"):
        read_mnist(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        read_mnist(tmp_path / "empty")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="not a readable"):
        read_mnist(tmp_path / "text.npz")
    write_idx(tmp_path / "cut")
    file = tmp_path / "cut" / IDX_FILES["test"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is cut: 1567 bytes"):
        read_mnist(tmp_path / "cut")


def test_the_command_says_where_the_data_is_to_be_had(tmp_path):
    result = CliRunner().invoke(mnist.main, ["--data", str(tmp_path / "absent")])
    assert result.exit_code == 2 and "download it with torchvision" in result.output
    assert "Traceback" not in result.output


def test_the_latents_are_lossless_and_standardised(tmp_path):
    write_npz(tmp_path / "mnist.npz")
    content = read_mnist(tmp_path / "mnist.npz")
    data = mnist.encoded(content)
    from erk.models.checkpoint import ENCODERS

    encoder = ENCODERS[data.encoder.name](**data.encoder.kwargs)
    assert data.images.shape == (5, 4, 14, 14) and data.images.dtype == torch.float32
    assert torch.equal(encoder.decode(data.images), content.train[:, None])
    assert data.images.mean().item() == pytest.approx(0, abs=1e-3)
    assert data.images.std().item() == pytest.approx(0.5, abs=1e-3)
