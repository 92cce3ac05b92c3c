"""erk prepare-imagenet --split: training or validation images, whatever holds them (S1)."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from erk.commands import imagenet_archive
from erk.commands.prepare_imagenet import main
from metrics.centre_crop import centre_crop

TRAIN = [f"n0{i}440764/n0{i}440764_{j}.JPEG" for i in range(2) for j in (7, 10)]
VAL = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)]


def encoded(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40 + seed, 50, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


IMAGES = {name: encoded(seed) for seed, name in enumerate([*TRAIN, *VAL])}


def write_folder(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            IMAGES[next(key for key in IMAGES if name.endswith(key.rpartition("/")[2]))]
        )
    return root


@pytest.fixture
def prepare(tmp_path):
    """Run the command; the result, and the decoded images and the labels of the archive."""

    def run(source, *options):
        dest = tmp_path / "out.zip"
        arguments = ["--source", str(source), "--dest", str(dest), "--size", "16", "--overwrite"]
        result = CliRunner().invoke(main, [*arguments, *options])
        if result.exit_code:
            return result, [], None
        with zipfile.ZipFile(dest) as archive:
            names = [name for name in archive.namelist() if name.endswith(".png")]
            images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
            return result, images, json.loads(archive.read("dataset.json"))["labels"]

    return run


def cropped(name):
    return np.asarray(centre_crop(Image.open(io.BytesIO(IMAGES[name])), 16))


def test_the_flat_archive_of_the_validation_set(prepare, tmp_path):
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
        for name in reversed(VAL):
            member = tarfile.TarInfo(name)
            member.size = len(IMAGES[name])
            archive.addfile(member, io.BytesIO(IMAGES[name]))
    result, images, labels = prepare(tmp_path / "ILSVRC2012_img_val.tar", "--split", "val")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(images, [cropped(name) for name in VAL])
    assert labels is None
    assert "holds 3 validation images, ImageNet has 50,000" in result.stderr


def test_a_split_of_a_tree_that_holds_both(prepare, tmp_path):
    root = write_folder(
        tmp_path / "CLS-LOC",
        [*(f"train/{name}" for name in TRAIN), *(f"val/{name}" for name in VAL)],
    )
    result, images, labels = prepare(root, "--split", "val")
    np.testing.assert_array_equal(images, [cropped(name) for name in VAL])
    result, images, labels = prepare(root, "--split", "train", "--per-class", "1")
    np.testing.assert_array_equal(images, [cropped(name) for name in sorted(TRAIN)[::2]])
    assert [label for _, label in labels] == [0, 1]
    result, *_ = prepare(root)
    assert result.exit_code == 2 and "choose --split train or val" in result.stderr


def test_validation_images_in_class_folders_have_labels(prepare, tmp_path):
    names = [f"n0{i}440764/{VAL[i]}" for i in range(3)]
    result, images, labels = prepare(write_folder(tmp_path / "val", names), "--split", "val")
    assert result.exit_code == 0 and [label for _, label in labels] == [0, 1, 2]
    np.testing.assert_array_equal(images, [cropped(name) for name in VAL])


def test_training_images_are_no_validation_images(prepare, tmp_path):
    result, *_ = prepare(write_folder(tmp_path / "train", TRAIN), "--split", "val")
    assert result.exit_code == 2 and "holds no validation images of ImageNet" in result.stderr
    assert not (tmp_path / "out.zip").exists()


def test_a_complete_split_gets_no_note(prepare, tmp_path, monkeypatch):
    complete = imagenet_archive.SPLITS["val"]._replace(images=3)
    monkeypatch.setitem(imagenet_archive.SPLITS, "val", complete)
    result, *_ = prepare(write_folder(tmp_path / "val", VAL), "--split", "val")
    assert result.exit_code == 0 and "ImageNet has" not in result.stderr
