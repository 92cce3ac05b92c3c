"""Images on disk: what is written is read back, at about the size that Pillow's default gives."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from erk.generation.archives import pack_npz, pack_zip
from erk.generation.images import (
    image_path,
    png_bytes,
    read_png,
    save_images,
    sheet,
    stored_images,
)
from erk.io.atomic import write_file


def smooth(channels, size=256):
    """An image without noise: a slow wave, different in every channel."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(channels)]
    return ((np.stack(waves) + 1) * 127.5).astype(np.uint8)


def random_image(channels, seed=0, height=9, width=13):
    shape = (channels, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels, tmp_path):
    image = random_image(channels)
    write_file(tmp_path / "a.png", png_bytes(image))
    assert (read_png(tmp_path / "a.png") == image).all()
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == {1: "L", 3: "RGB"}[channels] and opened.size == (13, 9)
        seen = np.asarray(opened).reshape(9, 13, channels)
    assert (seen == image.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_about_as_small_as_pillows_default(channels):
    image = smooth(channels)
    pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
    default = io.BytesIO()
    Image.fromarray(pixels).save(default, "PNG")
    assert len(png_bytes(image)) < 1.3 * len(default.getvalue())
    assert len(png_bytes(image)) < 0.6 * image.size


def test_image_path(tmp_path):
    assert image_path(tmp_path, 7) == tmp_path / "000007.png"
    assert image_path(tmp_path, 49999, subdirs=True) == tmp_path / "049000" / "049999.png"
    assert image_path(tmp_path, 12345678) == tmp_path / "12345678.png"


def named(paths, root):
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in paths]


@pytest.fixture(params=[1, 3])
def images(request, tmp_path):
    """Five images in sub-folders and their pixels."""
    arrays = {seed: random_image(request.param, seed) for seed in (0, 1, 999, 1000, 2500)}
    root = tmp_path / "images"
    for seed, array in arrays.items():
        path = image_path(root, seed, subdirs=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, png_bytes(array))
    return root, arrays


def test_zip_holds_the_same_files(images, tmp_path):
    root, arrays = images
    paths = [image_path(root, seed, subdirs=True) for seed in arrays]
    pack_zip(tmp_path / "a.zip", named(paths, root))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [path.relative_to(root).as_posix() for path in paths]
        assert archive.namelist()[3] == "001000/001000.png"
        assert [archive.read(name) for name in archive.namelist()] == [
            path.read_bytes() for path in paths
        ]


def test_npz_holds_pixels_and_seeds(images, tmp_path):
    root, arrays = images
    pack_npz(tmp_path / "a.npz", arrays.values(), list(arrays))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["arr_0", "seeds"]
        assert file["seeds"].tolist() == list(arrays)
        assert file["arr_0"].dtype == np.uint8
        expected = np.stack([array.transpose(1, 2, 0) for array in arrays.values()])
        assert (file["arr_0"] == expected).all()


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_archives_carry_no_time(kind, images, tmp_path):
    root, arrays = images
    paths = [image_path(root, seed, subdirs=True) for seed in arrays]

    def pack(name):
        target = tmp_path / name
        if kind == "zip":
            pack_zip(target, named(paths, root))
        else:
            pack_npz(target, map(read_png, paths), list(arrays))
        return target.read_bytes()

    first = pack("a")
    for path in paths:
        os.utime(path, (1e9, 1e9))
    assert pack("b") == first
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "images"]


def test_sheet_puts_images_row_by_row():
    images = np.stack([np.full((1, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    page = sheet(images, columns=2, scale=1, gap=1)
    assert page.shape == (1, 2 * (2 + 1) + 1, 2 * (3 + 1) + 1) and page.dtype == np.uint8
    assert (page[0, 1:3, 1:4] == 10).all() and (page[0, 1:3, 5:8] == 20).all()
    assert (page[0, 4:6, 1:4] == 30).all() and (page[0, 4:6, 5:8] == 255).all()
    assert (page[0, 0] == 255).all() and (page[0, :, 0] == 255).all() and page[0, 3].min() == 255


def test_sheet_enlarges_and_is_square_by_itself():
    images = np.stack([random_image(3, seed, 4, 4) for seed in range(9)])
    page = sheet(images, scale=2, gap=0)
    assert page.shape == (3, 24, 24)
    assert (page[:, ::2, ::2][:, :4, 4:8] == images[1]).all()
    assert (page[:, 1::2, 1::2][:, 8:, 8:] == images[8]).all()


def test_save_images_writes_a_file_per_image(tmp_path):
    images = np.stack([random_image(3, seed) for seed in range(3)])
    paths = save_images(torch.from_numpy(images), tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["000000.png", "000001.png", "000002.png"]
    assert all((read_png(path) == image).all() for path, image in zip(paths, images, strict=True))
    save_images(images, str(tmp_path), seeds=[7, 3, 12345678])
    assert stored_images(tmp_path, False)["seed"].tolist() == [3, 7, 12345678]
    assert (read_png(tmp_path / "000003.png") == images[1]).all()


@pytest.mark.parametrize(
    ("images", "seeds", "message"),
    [(np.zeros((2, 3, 4, 4)), None, r"uint8 \[N, C, H, W\] with C = 1 or 3, not float64"),
     (np.zeros((4, 4, 3), np.uint8), None, r"not uint8 \[4, 4, 3\]"),
     (np.zeros((2, 4, 4, 3), np.uint8), None, r"not uint8 \[2, 4, 4, 3\]"),
     (np.zeros((2, 1, 4, 4), np.uint8), [1], "2 images need as many seeds, not 1"),
     (np.zeros((2, 1, 4, 4), np.uint8), [0.5, 1.5], "seeds must be a list of whole numbers"),
     (np.zeros((2, 1, 4, 4), np.uint8), [-1, 0], "seeds are 0 to 9+, not -1 to 0"),
     (np.zeros((2, 1, 4, 4), np.uint8), [0, 10**18], "seeds are 0 to 9+, not 0 to 10+")],
)  # fmt: skip
def test_save_images_refuses(images, seeds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_images(images, tmp_path / "out", seeds)
    assert not (tmp_path / "out").exists()


def test_stored_seeds_are_those_of_files_at_their_path(tmp_path):
    save_images(np.zeros((2, 1, 4, 4), np.uint8), tmp_path, seeds=[1, 1001])
    for name in ("7.png", "000002.jpg", "0000003.png", "1001/000009.png", "001000/001002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert stored_images(tmp_path, False)["seed"].tolist() == [1, 9, 1001, 1002]
    assert stored_images(tmp_path, True)["seed"].tolist() == [1002]
    assert stored_images(tmp_path / "none", False)["seed"].tolist() == []
