"""Cached values: keyed by content and version, safe against races and damage."""

import math
import multiprocessing
import os

import pytest
import safetensors.torch
import torch

from erk.io.cache import cached, cached_path, digest, find

KEY = {"solver": "heun", "steps": 8, "network": "0" * 64}


def never():
    raise AssertionError("computed again")


def test_a_value_is_computed_once(tmp_path):
    assert cached(KEY, 1, lambda: {"fd": 1.5}, tmp_path / "new") == {"fd": 1.5}
    assert cached(KEY, 1, never, tmp_path / "new") == {"fd": 1.5}


def test_the_first_call_returns_what_later_ones_read(tmp_path):
    assert cached(KEY, 1, lambda: (1, 2), tmp_path) == [1, 2] == cached(KEY, 1, never, tmp_path)


@pytest.mark.parametrize(
    "other", [({**KEY, "steps": 9}, 1), (KEY, 2), ({**KEY, "steps": 8.5}, 1), ([KEY], 1)]
)
def test_another_key_or_version_is_another_entry(tmp_path, other):
    cached(KEY, 1, lambda: "first", tmp_path)
    assert cached(*other, lambda: "second", tmp_path) == "second"
    assert cached(KEY, 1, never, tmp_path) == "first"


def test_equal_keys_have_equal_digests():
    assert digest({"a": 1, "b": (1, 2)}, 1) == digest({"b": [1, 2], "a": 1}, 1)
    assert len(digest(KEY, 1)) == 64


@pytest.mark.parametrize("key", [{"steps": math.inf}, [math.nan], {"path": object()}])
def test_keys_that_json_cannot_hold_are_refused(tmp_path, key):
    with pytest.raises((ValueError, TypeError)):
        cached(key, 1, never, tmp_path)


@pytest.mark.parametrize("damage", [b"", b'{"fd": 1', b"\0\0\0\0"])
def test_a_damaged_entry_is_computed_again(tmp_path, damage):
    cached(KEY, 1, lambda: {"fd": 1.5}, tmp_path)
    cached_path(KEY, 1, tmp_path).write_bytes(damage)
    with pytest.raises(FileNotFoundError, match="missing or damaged"):
        find(KEY, 1, tmp_path)
    assert cached(KEY, 1, lambda: {"fd": 2.5}, tmp_path) == {"fd": 2.5} == find(KEY, 1, tmp_path)


def test_tensors_and_bytes(tmp_path):
    codec = {"load": safetensors.torch.load_file, "save": safetensors.torch.save,
           "suffix": ".safetensors"}  # fmt: skip
    for make in (lambda: {"x": torch.arange(3)}, never):
        assert cached(KEY, 1, make, tmp_path, **codec)["x"].tolist() == [0, 1, 2]
    cached_path(KEY, 1, tmp_path, ".safetensors").write_bytes(b"damaged")
    assert cached(KEY, 1, lambda: {"x": torch.ones(1)}, tmp_path, **codec)["x"].tolist() == [1]
    raw = {"load": lambda path: path.read_bytes(), "save": bytes, "suffix": ".png"}
    assert cached(KEY, 1, lambda: b"\x89PNG", tmp_path, **raw) == b"\x89PNG"
    assert cached(KEY, 1, never, tmp_path, **raw) == b"\x89PNG"


def test_an_error_in_the_computation_leaves_no_entry(tmp_path):
    with pytest.raises(AssertionError):
        cached(KEY, 1, never, tmp_path)
    assert os.listdir(tmp_path) == []


def _race(folder, barrier, results):
    def make():
        barrier.wait()  # both have seen that there is no entry
        return list(range(10_000))

    results.put(cached(KEY, 1, make, folder))


def test_processes_may_compute_an_entry_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60) for _ in both] == [list(range(10_000))] * 2
    for process in both:
        process.join()
    assert len(os.listdir(tmp_path)) == 1
