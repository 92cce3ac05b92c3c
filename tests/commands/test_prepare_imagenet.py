"""erk prepare-imagenet: ADM's pixels, EDM's layout, one archive whatever the source."""

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from erk.commands import imagenet_archive
from erk.commands.prepare_imagenet import main
from erk.io import untrusted
from erk.io.untrusted import PNG
from metrics.centre_crop import centre_crop
from metrics.images import open_images

ROOT = Path(__file__).parents[2]
SIZE = 16
SHAPES = [  # width, height: portrait, landscape, square, small, exact, large, thin
    *((40, 23), (23, 40), (33, 33), (7, 9), (5, 61), (16, 16), (16, 90), (31, 32)),
    *((32, 32), (64, 64), (65, 131), (63, 64), (333, 70), (129, 257), (1, 3), (17, 500)),
]


def draw(width, height, mode="RGB", seed=0):
    """Smooth colours with noise on top, like a photograph."""
    rng = np.random.default_rng([width, height, seed])
    coarse = rng.integers(0, 256, (2 + height // 8, 2 + width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.integers(-20, 20, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def expected(image, size):
    """ADM's crop, written from its description: how often to halve is counted beforehand."""
    image = image.convert("RGB")
    shorter, halvings = min(image.size), 0
    while shorter // 2**halvings >= 2 * size:  # floor of floor is floor
        halvings += 1
    for n in range(1, halvings + 1):
        width, height = (side // 2 for side in image.size)
        image = image.resize((width, height), resample=Image.BOX)
        assert min(image.size) == shorter // 2**n
    factor = size / min(image.size)
    image = image.resize(tuple(round(side * factor) for side in image.size), resample=Image.BICUBIC)
    pixels = np.asarray(image)
    y, x = (math.floor((side - size) / 2) for side in pixels.shape[:2])
    return pixels[y : y + size, x : x + size]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [SIZE, 1, 21])
def test_the_crop_is_adms(size, mode):
    for width, height in SHAPES:
        image = draw(width, height, mode)
        computed = np.asarray(centre_crop(image, size))
        assert computed.shape == (size, size, 3)
        np.testing.assert_array_equal(computed, expected(image, size))


def test_halving_a_square_takes_means():
    """Without Pillow: means of two neighbours, halves rounded up, along rows and then columns."""
    pixels = np.asarray(draw(64, 64)).astype(int)
    for _ in range(2):
        pixels = (pixels[:, ::2] + pixels[:, 1::2] + 1) // 2
        pixels = (pixels[::2] + pixels[1::2] + 1) // 2
    np.testing.assert_array_equal(centre_crop(draw(64, 64), SIZE), pixels)


def encoded(image):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


CLASSES = ("n02000001", "n01000009", "n01000001")
TREE = {
    f"{folder}/{folder}_{i}.JPEG": encoded(
        draw(20 + 3 * i, 30 + 7 * number, "CMYK" if i == 2 else "RGB", seed=number)
    )
    for number, folder in enumerate(CLASSES)
    for i in (10, 2, 1)
}
ORDER = sorted(TREE)


def write_folder(root, tree):
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path, tree):
    with tarfile.open(path, "w") as archive:
        for name, data in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_tar_of_tars(path, tree):
    inner = {}
    for folder in {name.partition("/")[0] for name in tree}:
        own = {"./" + name.partition("/")[2]: tree[name] for name in tree if folder in name}
        inner[f"{folder}.tar"] = write_tar(path.with_suffix(".part"), own).read_bytes()
    return write_tar(path, inner)


def write_zip(path, tree):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            archive.writestr(f"ILSVRC/train/{name}", data)
    return path


@pytest.fixture
def train(tmp_path):
    return write_folder(tmp_path / "train", TREE)


@pytest.fixture
def prepare(tmp_path):
    """Runs the command; its result and the archive."""

    def run(source, *options, dest="out.zip"):
        arguments = ["--source", str(source), "--dest", str(tmp_path / dest), "--size", str(SIZE)]
        return CliRunner().invoke(main, [*arguments, *options]), tmp_path / dest

    return run


def content(path):
    """The images and the labels of an archive."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
        return names, images, json.loads(archive.read("dataset.json"))["labels"]


def test_pixels_names_and_labels(prepare, train):
    result, path = prepare(train)
    assert result.exit_code == 0, result.output
    assert "9 images of 16x16, 3 classes" in result.stdout and "0 left out" in result.stdout
    names, images, labels = content(path)
    assert names == [f"00000/img{i:08d}.png" for i in range(9)]
    assert labels == [[name, i // 3] for i, name in enumerate(names)]
    for name, pixels in zip(ORDER, images, strict=True):
        source = Image.open(io.BytesIO(TREE[name]))
        np.testing.assert_array_equal(pixels, expected(source, SIZE))
    with zipfile.ZipFile(path) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {member.date_time[0] for member in archive.infolist()} == {1980}


def test_the_evaluator_reads_it(prepare, train):
    _, path = prepare(train)
    source = open_images(path)
    names, _, labels = content(path)
    assert source.names == names
    assert source.labels == [label for _, label in labels]


def test_every_source_and_any_number_of_workers_give_the_same_bytes(prepare, train, tmp_path):
    sources = [
        train,
        write_tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", TREE),
        write_tar(tmp_path / "train.tar", {f"./train/{name}": TREE[name] for name in TREE}),
        write_zip(tmp_path / "train.zip", TREE),
    ]
    built = set()
    for number, source in enumerate(sources):
        for workers in ("1", "2", "5"):
            result, path = prepare(source, "--workers", workers, dest=f"{number}-{workers}.zip")
            assert result.exit_code == 0, result.output
            built.add(path.read_bytes())
    assert len(built) == 1


def test_a_part_of_the_images_keeps_their_classes(prepare, train):
    _, first = prepare(train, "--per-class", "2", dest="first.zip")
    _, images, labels = content(first)
    assert [label for _, label in labels] == [0, 0, 1, 1, 2, 2]
    chosen = [ORDER[i] for i in (0, 1, 3, 4, 6, 7)]
    source = [Image.open(io.BytesIO(TREE[name])) for name in chosen]
    np.testing.assert_array_equal(images, [expected(image, SIZE) for image in source])
    _, second = prepare(train, "--per-class", "2", "--max-images", "3", dest="second.zip")
    assert content(second)[2] == labels[:3]


def test_more_than_a_thousand_images(prepare, tmp_path):
    data = encoded(draw(4, 4))
    tree = {f"{folder}/{i}.jpg": data for folder in "ab" for i in range(501)}
    _, path = prepare(write_zip(tmp_path / "many.zip", tree), "--size", "1")
    names, _, labels = content(path)
    assert names[999:] == [
        "00000/img00000999.png",
        "00001/img00001000.png",
        "00001/img00001001.png",
    ]
    assert labels[500:502] == [[names[500], 0], [names[501], 1]]


def test_a_flat_folder_has_no_labels(prepare, tmp_path):
    flat = {name.partition("/")[2]: data for name, data in TREE.items()}
    flat |= {"notes.txt": b"x", "._n1.JPEG": b"x"}
    result, path = prepare(write_folder(tmp_path / "flat", flat))
    assert result.exit_code == 0 and "has no two class folders" in result.stderr
    assert "no labels" in result.stdout
    names, _, labels = content(path)
    assert (len(names), labels) == (9, None)
    result, _ = prepare(tmp_path / "flat", "--per-class", "2", dest="x.zip")
    assert result.exit_code == 2 and "--per-class needs class folders" in result.stderr


BROKEN = {
    "no image": b"junk",
    "truncated": TREE[ORDER[4]][:-300],
}


@pytest.mark.parametrize("reason", BROKEN)
@pytest.mark.parametrize("write", [write_folder, write_tar_of_tars, write_zip])
def test_corrupt_images(prepare, tmp_path, reason, write):
    source = write(tmp_path / "train", TREE | {ORDER[4]: BROKEN[reason]})
    result, path = prepare(source)
    assert result.exit_code == 2
    assert f"{ORDER[4]} cannot be decoded" in result.stderr and reason in result.stderr
    assert "Traceback" not in result.stderr and "--skip-corrupt" in result.stderr
    assert not path.exists() and not list(tmp_path.glob(".*"))
    result, path = prepare(source, "--skip-corrupt")
    assert result.exit_code == 0
    assert f"{ORDER[4]} cannot be decoded" in result.stderr and "1 left out" in result.stdout
    names, _, labels = content(path)
    assert names == [f"00000/img{i:08d}.png" for i in range(8)]
    assert [label for _, label in labels] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_a_damaged_member_of_a_zip_is_a_corrupt_image(prepare, tmp_path):
    path = tmp_path / "train.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in TREE.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[data.index(TREE[ORDER[4]]) + 100] ^= 255
    path.write_bytes(data)
    result, _ = prepare(path)
    assert result.exit_code == 2
    assert f"{ORDER[4]} cannot be decoded" in result.stderr and "Bad CRC-32" in result.stderr


@pytest.mark.filterwarnings("error")
def test_an_image_may_be_as_large_as_imagenets_and_no_larger(prepare, tmp_path, monkeypatch):
    """The 170 megapixels that Pillow lets pass with a warning are refused unread."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 17_000, 10_000, 8, 0, 0, 0, 0)
    huge = PNG + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    huge += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    source = write_folder(tmp_path / "train", TREE | {ORDER[0]: huge})
    result, path = prepare(source, "--skip-corrupt")
    assert result.exit_code == 2 and not path.exists()
    assert f"{ORDER[0]} is too large (17000x10000, more than 70000000 pixels)" in result.stderr
    assert "Warning" not in result.stderr
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # where Pillow would warn
    result, _ = prepare(write_folder(tmp_path / "train", TREE))
    assert result.exit_code == 0 and "Warning" not in result.stderr
    monkeypatch.setattr(imagenet_archive, "MAX_PIXELS", 9331 * 6530)
    for module in (untrusted, imagenet_archive):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 100)
    for train in (source, write_tar(tmp_path / "train.tar", TREE)):
        result, _ = prepare(train, "--skip-corrupt", dest="other.zip")
        assert result.exit_code == 2 and "is too large (more than 100 bytes)" in result.stderr


def test_an_image_of_endless_passes_is_refused(prepare, tmp_path):
    data = io.BytesIO()
    draw(64, 64).save(data, "JPEG", progressive=True)
    start = data.getvalue().index(b"\xff\xda")
    end = data.getvalue().index(b"\xff\xda", start + 2)
    scan = data.getvalue()[start:end]
    many = data.getvalue()[:start] + scan * 200 + data.getvalue()[end:]
    result, _ = prepare(write_folder(tmp_path / "train", TREE | {ORDER[0]: many}))
    assert result.exit_code == 2 and "a JPEG with more than 100 scans" in result.stderr


def test_nothing_but_corrupt_images(prepare, tmp_path):
    source = write_folder(tmp_path / "train", dict.fromkeys(TREE, b"junk"))
    result, path = prepare(source, "--skip-corrupt")
    assert result.exit_code == 2 and "no image of" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size must be at least 1, not 0"),
        (["--size", "100000000"], "--size must be at most 4096, not 100000000"),  # 27
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--per-class", "0"], "--per-class must be at least 1, not 0"),
        (["--max-images", "-1"], "--max-images must be at least 1, not -1"),
        (["--dest", "out"], "must end in .zip"),
    ],
)
def test_options_that_make_no_sense(prepare, train, options, message):
    result, _ = prepare(train, *options)
    assert result.exit_code == 2 and message in result.stderr


def test_an_archive_is_replaced_only_if_asked(prepare, train):
    _, path = prepare(train)
    before = path.read_bytes()
    result, _ = prepare(train, "--max-images", "4")
    assert result.exit_code == 2 and "exists: choose another --dest" in result.stderr
    assert path.read_bytes() == before
    result, _ = prepare(train, "--max-images", "4", "--overwrite")
    assert result.exit_code == 0 and len(content(path)[0]) == 4


def test_sources_that_make_no_sense(prepare, train, tmp_path):
    empty = tmp_path / "empty"
    (empty / "n1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no archive")
    cases = {
        empty: "holds no images",
        tmp_path / "nothing": "there is no",
        tmp_path / "notes.txt": "is no readable zip or uncompressed tar",
        write_folder(tmp_path / "deep", {"a/x.png": b"", "b/c/x.png": b""}): "a and in",
        write_folder(tmp_path / "stray", {"x.png": b"", "b/x.png": b""}): "images in . and in b",
        prepare(train, dest="done.zip")[1]: "has been prepared already",
    }
    for source, message in cases.items():
        result, path = prepare(source)
        assert result.exit_code == 2 and message in result.stderr, source
        assert result.stderr.count("\n") == 1 and not path.exists()


def test_a_destination_that_cannot_be_written(prepare, train, tmp_path):
    (tmp_path / "file").write_text("")
    result, _ = prepare(train, dest="file/out.zip")
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr and "choose another folder" in result.stderr


def test_a_killed_run_leaves_nothing_under_the_name(prepare, tmp_path):
    data = encoded(draw(900, 900))
    source = write_folder(tmp_path / "train", {f"n{i % 2}/{i}.jpg": data for i in range(400)})
    dest = tmp_path / "out.zip"
    command = [sys.executable, "-m", "erk", "prepare-imagenet", "--source", source, "--dest", dest]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not any(p.stat().st_size for p in tmp_path.glob(".out.zip.*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not dest.exists() and len(list(tmp_path.glob(".out.zip.*.tmp"))) == 1
    result, _ = prepare(source, "--max-images", "2")
    assert result.exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["out.zip", "train"]


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_more_than_8_bits_are_refused(tmp_path, mode):
    """F8: Pillow clips a ramp of 16 bits to white."""
    dtype = {"I;16": np.uint16, "F": np.float32}[mode]
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(dtype)
    data = io.BytesIO()
    Image.fromarray(ramp).save(data, "tiff" if mode == "F" else "png")
    source = imagenet_archive.Source(["a.png"], lambda _: data.getvalue())
    with pytest.raises(ValueError, match="convert it to"):
        imagenet_archive.crop(source, "a.png", SIZE)


def test_links_are_followed_once_and_counted(prepare, train, tmp_path):
    """F5"""
    source = tmp_path / "linked"
    source.mkdir()
    for number, folder in enumerate(sorted(train.iterdir())):
        (source / f"n{number}").symlink_to(folder)
    (source / "again").symlink_to(source)
    result, path = prepare(source)
    assert result.exit_code == 0, result.output
    assert "9 images of 9 in 3 linked folders" in result.stderr and "again" in result.stderr
    assert len(content(path)[0]) == 9
