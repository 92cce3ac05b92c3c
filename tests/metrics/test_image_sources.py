"""Folders, zips and npz files give the same batches; what is wrong is named."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from erk.io import untrusted
from metrics.images import BrokenImageError, load_images, open_images, read_image
from metrics.npz import map_npz
from metrics.selection import labels_of, seeds_of, subset

GREY = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


RUN = {"seeds": "0-4", "settings": {"labels": "balanced", "class": None}}


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()


def everything(path) -> torch.Tensor:
    """[N, C, H, W]"""
    source = open_images(path)
    images = [read_image(source, i) for i in range(len(source.names))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture
def folder(tmp_path):
    """Two sub-folders, and what is no image of the set."""
    for i, pixels in enumerate(GREY):
        file = tmp_path / f"{i // 2 * 2:06d}" / f"{i:06d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(pixels))
    (tmp_path / "grid.png").write_bytes(png(RGB[0]))
    (tmp_path / ".hidden.png").write_bytes(png(RGB[0]))
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_is_read_in_seed_order(folder):
    source = open_images(folder)
    assert source.names[3] == "000002/000003.png"
    assert source.run == RUN
    assert everything(folder).shape == (5, 1, 6, 7)
    assert torch.equal(everything(folder)[:, 0], torch.from_numpy(GREY))


def test_members_above_an_archive_are_not_hidden(tmp_path):
    """Names that begin with .. were left out without a note."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("../b/1.png", "2.png", ".3.png", ".d/4.png"):
            archive.writestr(name, png(GREY[0]))
    assert open_images(tmp_path / "a.zip").names == ["2.png", "../b/1.png"]


def test_other_results_below_a_run_are_not_its_images(folder):
    (folder / "demo").mkdir()
    (folder / "demo" / "demo.png").write_bytes(png(RGB[0]))
    source = open_images(folder)
    assert len(source.names) == 5 and "are not of this run: 1" in source.notes[-1]
    (folder / "run.json").unlink()  # a folder of a data set: its sub-folders have any names
    assert len(open_images(folder).names) == 6


def test_numbers_sort_as_numbers(tmp_path):
    for name in ("1000000", "999999", "10"):
        (tmp_path / f"{name}.png").write_bytes(png(GREY[0]))
    assert seeds_of(open_images(tmp_path)) == [10, 999999, 1000000]


def test_zip_equals_folder(folder, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            if file != path and file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    source = open_images(path)
    assert source.names == open_images(folder).names
    assert source.run == RUN
    assert torch.equal(everything(path), everything(folder))


@pytest.mark.parametrize("key", ["images", "arr_0"])
def test_npz_grey_and_rgb(tmp_path, key):
    np.savez(tmp_path / "grey.npz", **{key: GREY})
    np.savez(tmp_path / "rgb.npz", **{key: RGB})
    assert torch.equal(everything(tmp_path / "grey.npz")[:, 0], torch.from_numpy(GREY))
    assert torch.equal(everything(tmp_path / "rgb.npz"), torch.from_numpy(RGB).permute(0, 3, 1, 2))


def test_folder_that_holds_only_an_archive(tmp_path):
    np.savez(tmp_path / "images.npz", images=GREY, seeds=np.arange(20, 25), labels=np.arange(5))
    (tmp_path / "run.json").write_text('{"seeds": "20-24"}')
    source = open_images(tmp_path)
    assert seeds_of(source) == [20, 21, 22, 23, 24]
    assert labels_of(source, 10) == [0, 1, 2, 3, 4]
    assert source.run == {"seeds": "20-24"}


@pytest.mark.parametrize("name", ["real.npz", "real.zip"])
def test_an_archive_of_others_in_the_folder_of_a_run(tmp_path, name):
    """J: the run's class was taken for that of the images: an accuracy of chance."""
    (tmp_path / "run.json").write_text('{"settings": {"class": 7}}')
    if name.endswith("npz"):
        np.savez(tmp_path / name, images=GREY)
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for i in range(5):
                archive.writestr(f"{i:06d}.png", png(GREY[i]))
    source = open_images(tmp_path / name)
    assert source.run == {} and labels_of(source, 10) is None
    generated = (tmp_path / name).rename(tmp_path / f"images{name[4:]}")
    assert labels_of(open_images(generated), 10) == [7] * 5


def test_jpeg_rgb(tmp_path):
    for i in range(2):
        Image.fromarray(RGB[i]).save(tmp_path / f"{i}.JPG", "jpeg")
    assert everything(tmp_path).shape == (2, 3, 6, 7)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_copies_in_another_format_are_not_of_the_run(folder, kind):
    """J: 000000.png and 000000.jpg were two images of one seed."""
    Image.fromarray(RGB[0]).save(folder / "000000.jpg")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for listed in (files, [path for path in files if path.name != "run.json"]):
        path = folder
        if kind == "zip":
            path = folder.with_suffix(".zip")
            with zipfile.ZipFile(path, "w") as archive:
                for file in listed:
                    archive.write(file, file.relative_to(folder))
        elif listed != files:
            (folder / "run.json").unlink()
        source = open_images(path)
        if listed == files:
            assert len(source.names) == 5 and "000000.jpg" not in source.names
            assert "images that are no PNG are not of this run: 1" in source.notes
        else:  # of somebody else: files are images, their numbers no seeds
            assert len(source.names) == 6 and seeds_of(source) is None


def test_balanced_classes_are_those_of_the_network(folder):
    """J: they were those of the extractor, which may have other classes."""
    run = {"settings": {"labels": "balanced"}, "network": {"sha256": "0", "classes": 2}}
    (folder / "run.json").write_text(json.dumps(run))
    assert labels_of(open_images(folder), 10) == [0, 1, 0, 1, 0]
    run["network"]["classes"] = "2"
    (folder / "run.json").write_text(json.dumps(run))
    assert labels_of(open_images(folder), 3) == [0, 1, 2, 0, 1]


def test_labels_follow_from_the_settings(folder):
    assert labels_of(open_images(folder), 3) == [0, 1, 2, 0, 1]
    (folder / "run.json").write_text('{"settings": {"class": 7, "labels": "random"}}')
    assert labels_of(open_images(folder), 10) == [7] * 5
    (folder / "run.json").write_text('{"settings": {"labels": "random"}}')
    assert labels_of(open_images(folder), 10) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("000001.png", png(GREY[0])[:-40], "000001.png is not a readable image"),
        ("000001.png", b"junk", "000001.png is not a readable image"),
        ("000001.png", b"", "000001.png is not a readable image"),
        ("000001.png", png(np.zeros((6, 7, 4), np.uint8)), "000001.png has mode RGBA"),
        ("000001.png", png(np.zeros((6, 7), np.uint16)), "000001.png has mode I;16"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_bad_image_is_named(tmp_path, kind, name, content, message):
    files = {"000000.png": png(GREY[0]), name: content}
    if kind == "folder":
        for key, data in files.items():
            (tmp_path / key).write_bytes(data)
    else:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for key, data in files.items():
                archive.writestr(key, data)
    broken = "not a readable" in message
    with pytest.raises(BrokenImageError if broken else ValueError, match=message):
        everything(tmp_path if kind == "folder" else tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("size", "bound", "reason"),
    [((4097, 4096), "MAX_PIXELS", "4097x4096, more than 16777216 pixels"),
     ((8, 8), "MAX_IMAGE_BYTES", "more than 100 bytes")],
)  # fmt: skip
def test_a_large_image_is_not_called_broken(tmp_path, monkeypatch, size, bound, reason):
    if bound == "MAX_IMAGE_BYTES":
        monkeypatch.setattr(untrusted, bound, 100)
    for i in range(2):
        Image.new("L", size).save(tmp_path / f"{i}.jpg")
    message = rf"0.jpg is too large to be measured \({reason}\)"
    with pytest.raises(ValueError, match=message) as error:
        read_image(open_images(tmp_path), 0)
    assert not isinstance(error.value, BrokenImageError)  # which --skip-corrupt leaves out


def test_a_jpeg_with_a_preview_inside_is_one_image(tmp_path):
    first, second = (Image.fromarray(RGB[i]) for i in range(2))
    for i in range(2):
        first.save(tmp_path / f"{i}.jpg", "MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "x", "JPEG")
    source = open_images(tmp_path)
    assert np.array_equal(read_image(source, 0), np.asarray(Image.open(tmp_path / "x")))


def test_an_image_cut_off_inside_a_zip_is_named(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2):
            archive.writestr(f"{i}.png", png(GREY[i]))
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # inside the first image: its checksum fails
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        everything(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": GREY}, "has no images"),
        ({"images": GREY.astype(np.float32)}, "holds float32 .* must be uint8"),
        ({"images": GREY[0, 0]}, "must be uint8"),
        ({"images": RGB[..., :2]}, "C = 1 or 3"),
        ({"images": GREY, "seeds": np.arange(4)}, "one seed and one label per image"),
        ({"images": GREY, "labels": np.arange(4)}, "one seed and one label per image"),
        ({"images": GREY[:1]}, "only one image"),
        ({"images": GREY, "seeds": np.array(5)}, "seeds must be whole numbers"),
        ({"images": GREY, "labels": np.eye(5)}, "labels must be whole numbers"),
        ({"images": np.array([None, None])}, "not a readable npz"),
    ],
)
def test_npz_refusals(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "x.npz")


def test_source_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        open_images(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path)
    (tmp_path / "0.png").write_bytes(png(GREY[0]))
    with pytest.raises(ValueError, match="holds only one image"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match="0.png is no image source"):
        open_images(tmp_path / "0.png")
    for name in ("x.zip", "x.npz"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ValueError, match=f"{name} is not a readable"):
            open_images(tmp_path / name)
    (tmp_path / "1.png").write_bytes(png(GREY[0]))
    for text, note in (
        ("{", "run.json cannot be read and is ignored"),
        ("[]", "run.json is not that of a run and is ignored"),
        ('{"settings": 1}', "run.json is not that of a run and is ignored"),
    ):
        (tmp_path / "run.json").write_text(text)
        source = open_images(tmp_path)
        assert source.run == {} and source.notes[0].startswith(note)


def test_empty_zip(tmp_path):
    zipfile.ZipFile(tmp_path / "x.zip", "w").close()
    with pytest.raises(ValueError, match=r"x\.zip holds no images"):
        open_images(tmp_path / "x.zip")


def test_a_stored_npz_stays_on_the_disk(tmp_path):
    np.savez(tmp_path / "stored.npz", arr_0=RGB)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=RGB)
    np.savez(tmp_path / "columns.npz", arr_0=np.asfortranarray(RGB))
    for name in ("stored", "packed", "columns"):
        mapped = map_npz(tmp_path / f"{name}.npz", "arr_0")
        assert isinstance(mapped, np.memmap) == (name != "packed")
        assert np.array_equal(mapped, RGB)
    assert map_npz(tmp_path / "stored.npz", "images") is None
    data = (tmp_path / "stored.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:200])
    with pytest.raises(ValueError, match=r"cut\.npz is not a readable npz"):
        map_npz(tmp_path / "cut.npz", "arr_0")


def test_subset_is_that_of_edm2(folder):
    source = open_images(folder)
    order = np.arange(5)
    np.random.RandomState(3).shuffle(order)
    chosen = subset(source, 3, seed=3)
    assert seeds_of(chosen) == sorted(order[:3].tolist())
    for i, seed in enumerate(seeds_of(chosen)):
        assert np.array_equal(read_image(chosen, i)[..., 0], GREY[seed])
    assert subset(source, None) is source
    assert subset(source, 5, seed=1).names == source.names
    for wrong in (0, 1, 6):
        with pytest.raises(ValueError, match=f"a subset has 2 to as many, not {wrong}"):
            subset(source, wrong)


def test_labels_of_a_data_set(folder):
    names = open_images(folder).names
    rows = [[name, i % 3] for i, name in reversed(list(enumerate(names)))]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    assert open_images(folder).labels == [0, 1, 2, 0, 1]
    assert subset(open_images(folder), 2, seed=3).labels is not None
    (folder / "dataset.json").write_text(json.dumps({"labels": [*rows, [names[0], 2]]}))
    assert f"it gives {names[0]} two classes, 0 and 2" in open_images(folder).notes[0]  # J
    (folder / "dataset.json").write_text('{"labels": null}')
    assert open_images(folder).labels is None
    (folder / "dataset.json").write_text('{"labels": 3}')
    source = open_images(folder)
    assert source.labels is None and "dataset.json gives no classes" in source.notes[0]


def flat_png(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side)).save(data, "png", compress_level=0)
    return data.getvalue()


def test_flat_images_in_a_zip_are_read(tmp_path):
    """F9: uncompressed PNGs above 1 MiB, which deflate a thousandfold."""
    with zipfile.ZipFile(tmp_path / "a.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:  # P2
        for i in range(2):
            archive.writestr(f"{i}.png", flat_png(640))
    assert everything(tmp_path / "a.ZIP").shape == (2, 3, 640, 640)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_refusal_is_no_damage(tmp_path, method):
    """F9: the sentence of the guard, not counted by --skip-corrupt."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for i in range(2):
            archive.writestr(f"{i}.png", flat_png(8))
    with pytest.raises(ValueError, match="neither stored nor deflated") as caught:
        everything(tmp_path / "a.zip")
    assert not isinstance(caught.value, BrokenImageError)


def test_images_of_other_formats_are_counted(tmp_path):
    """P1"""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(flat_png(8))
        (tmp_path / f"{i}.webp").write_bytes(b"RIFF")
    (tmp_path / "a.bmp").write_bytes(b"BM")
    assert open_images(tmp_path).notes == (
        "images of other formats are not read (1 .bmp, 2 .webp): convert them to PNG",
    )


def test_other_side_files_are_bounded(tmp_path):
    """H9: a run.json of 120 MB in a zip is not read."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(2):
            archive.writestr(f"{i}.png", flat_png(8))
        archive.writestr("run.json", b" " * (1 << 21))
    source = open_images(tmp_path / "a.zip")
    assert source.run == {} and "run.json cannot be read" in source.notes[0]


def test_archives_beside_images_and_capital_letters(tmp_path):
    """P2, and archives that are not read."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(GREY[i]))
    with zipfile.ZipFile(tmp_path / "X.ZIP", "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", png(GREY[i]))
    assert len(open_images(tmp_path / "X.ZIP").names) == 3
    (note,) = open_images(tmp_path).notes
    assert note == "X.ZIP in it is not read: to measure an archive, name it"


def test_images_of_two_sizes_are_named(tmp_path):
    for name, size in (("a", 8), ("b", 8), ("c", 9)):
        Image.new("L", (size, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="c.png is 9x8 grey but the first image is 8x8 grey"):
        load_images(tmp_path)
