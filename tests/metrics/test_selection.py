"""Which images, in which order, and of which class."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.evaluation import evaluate_features
from metrics.extractors import Outputs
from metrics.features import Features
from metrics.images import load_images, open_images
from metrics.selection import (
    checked_labels,
    is_in_seed_order,
    labels_of,
    seeds_of,
    subset,
)


def write(folder, *names):
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(data, "png")
        file.write_bytes(data.getvalue())
    return folder


def test_a_subset_is_that_of_edm2(tmp_path):
    """G7: EDM2 shuffles the files in the plain order of their names."""
    source = open_images(write(tmp_path, *(f"img{i}.png" for i in range(40))))
    names = sorted(source.names)
    for seed in range(4):
        order = np.arange(40)
        np.random.RandomState(seed).shuffle(order)
        expected = {names[i] for i in order[:10]}
        assert set(subset(source, 10, seed).names) == expected


@pytest.mark.parametrize(
    "names, known",
    [
        (["000000.png", "000001.png", "000002.png"], True),
        (["000000/000999.png", "001000/001000.png"], True),
        (["0/000000.png", "0/000001.png", "1/000000.png", "1/000001.png"], False),
        (["0/000000.png", "0/000001.png", "1/000002.png", "1/000003.png"], False),
        (["a.png", "b.png"], False),
    ],
)
def test_order_of_seeds(tmp_path, names, known):
    """F4: folders may be classes, repeated numbers are no seeds."""
    assert is_in_seed_order(open_images(write(tmp_path, *names))) == known


def test_rows_without_seeds_have_none(tmp_path):
    """F4: the index of a row is no seed."""
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 2, 2), np.uint8))
    source = open_images(tmp_path / "a.npz")
    assert seeds_of(source) is None and not is_in_seed_order(source)


@pytest.mark.parametrize("value", [2_000_000_000, 10**12, -1, True, "3"])
def test_a_wrong_class_is_refused(tmp_path, value):
    """H7"""
    write(tmp_path, "0.png", "1.png")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"class": value}}))
    labels = labels_of(open_images(tmp_path), 10)
    with pytest.raises(ValueError, match=f"has the class '{value}', but classes are 0 to 9"):
        checked_labels(labels, 2, 10, "out")


@pytest.mark.parametrize(
    "content, note",
    [
        ('{"labels": [["0.png", [0.5, 1]], ["1.png", 1]]}', "no class 0, 1, 2"),
        ('{"labels": [["0.png", 10000000000000], ["1.png", 1]]}', "no class 0, 1, 2"),
        ("{", "cannot be read and is ignored"),
    ],
)
def test_side_files_are_not_needed(tmp_path, content, note):
    """F10, G11, H7"""
    write(tmp_path, "0.png", "1.png").joinpath("dataset.json").write_text(content)
    source = open_images(tmp_path)
    assert source.labels is None
    assert len(source.notes) == 1 and note in source.notes[0]


def test_byte_order_marks_are_accepted(tmp_path):
    """F10"""
    table = json.dumps({"labels": [["0.png", 3], ["1.png", 4]]})
    write(tmp_path, "0.png", "1.png").joinpath("dataset.json").write_text(table, "utf-8-sig")
    source = open_images(tmp_path)
    assert source.labels == [3, 4] and not source.notes


@pytest.mark.parametrize("value", [-1, 2**31, 2**63, 2**64 - 1])
def test_rows_of_an_npz_that_are_no_classes_give_none(tmp_path, value):
    """J5: -1 often stands for "unknown"; larger numbers do not fit int64."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    labels = np.array([0, 1, 2, value], np.uint64 if value > 0 else np.int64)
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=labels, seeds=np.arange(4))
    source = open_images(path)
    assert source.labels is None and is_in_seed_order(source) and load_images(path)[1] is None
    assert source.notes == (f"a.npz gives no classes: {value} is no class 0, 1, 2, ...",)


@pytest.mark.parametrize("labels", [[0.5, 1.0], [0, -1], [0, 2**63], [[0], [1]], [True, False]])
def test_labels_that_are_no_classes_are_not_rounded(labels):
    """J5: [0.5, 1.0] was measured as [0, 1]."""
    features = Features({"digits": Outputs(torch.randn(2, 64))}, torch.arange(2))
    with pytest.raises(ValueError, match="but classes are 0, 1, 2, ...: correct the labels"):
        evaluate_features(features, "digits", labels=labels)
