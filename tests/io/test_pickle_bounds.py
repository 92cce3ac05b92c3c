"""Pickles that would take years or gigabytes are refused in one sentence (H1-H4, F13, N7)."""

import io
import pickle

import numpy as np
import pytest
import torch
from hostile.formats import framed, mapping, module, tensor
from hostile.network_files import nest, network_of
from opcodes import call, const, raw

from erk.io import pickles


def read(path, data):
    path.write_bytes(data)
    return pickles.load(path)


def refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.pkl", data)


def nested_storage(key):
    """A storage whose key is any object, twice."""

    def one(body):
        return b"\x80\x02" + body + b"."

    pid = b"(" + const("storage") + b"ctorch\nFloatStorage\n" + key + const("cpu")
    return (one(const(0x1950A86A20F9469CFC6C)) + one(const(1001)) + one(b"}")
            + one(pid + const(1) + b"NtQ") + one(b"]" + key + b"a")
            + (1).to_bytes(8, "little") + bytes(4))  # fmt: skip


def test_a_storage_key_is_a_text(tmp_path):  # H1: 2^40 comparisons of nested tuples
    body = call("torch.storage._load_from_bytes", raw(nested_storage(nest(40, const("a")))))
    refused(tmp_path, framed(body), "a storage in it does not describe a storage")


def test_a_shape_is_of_integers(tmp_path):  # H1: min() of two nested tuples
    shape = b"(" + nest(40, const(1)) + nest(40, const(1)) + b"t"
    state = b"(" + const(1) + shape + call("numpy.dtype", const("f8")) + b"\x89" + raw(b"") + b"t"
    body = call("numpy.core.multiarray._reconstruct") + state + b"b"
    refused(tmp_path, framed(body), "not of integers")


def test_arguments_are_a_tuple(tmp_path):  # H2: a tensor has any number of items
    body = b"cnumpy\nndarray\n" + const([1] * 9) + b"R"
    refused(tmp_path, framed(body), "it gives a list as arguments")


def test_names_of_shared_modules_are_bounded(tmp_path):  # H3: 2^13 times a name of 1 MiB
    body = module("P", {"_parameters": mapping({})}) + b"q\x64"
    for _ in range(13):
        body += b"0" + module("P", {"_modules": mapping({"a": b"h\x64", "b": b"h\x64"})}) + b"q\x64"
    state = {"_modules": b"}" + const("x" * (1 << 20)) + body + b"s"}
    path = tmp_path / "a.pkl"
    path.write_bytes(network_of(state))
    content, _, budget = pickles.read(path)
    with pytest.raises(ValueError, match="copies the same bytes too often"):
        list(content["ema"].tensors(budget=budget))


def test_a_hundred_views_of_one_storage_are_copies(tmp_path):  # H5: 1.2 GB from 2.5 MB
    one = tensor(torch.zeros(200_000)) + b"q\x64"
    parameters = {"0": one} | {str(i): b"h\x64" for i in range(1, 100)}
    data = network_of({"_parameters": mapping(parameters)})
    (tmp_path / "a.pkl").write_bytes(data)
    content, _, budget = pickles.read(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="copies the same bytes too often"):
        list(content["ema"].tensors(budget=budget))
    assert len(data) < 1_000_000


@pytest.mark.parametrize("key", [2**61 - 1, -(2**61), 1 << 60])
def test_integer_keys_cannot_collide(tmp_path, key):  # H4
    refused(tmp_path, pickle.dumps({key: None}, 2), "adds an item to a dict")


@pytest.mark.parametrize("axes", [(1, 2, 0), (1, 0, 2), (2, 1, 0), (0, 2, 1), (0, 1, 2)])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_permuted_axes(tmp_path, axes, protocol):  # F13
    array = np.arange(24.0).reshape(2, 3, 4).transpose(axes)
    again = read(tmp_path / "a.pkl", pickle.dumps({"a": array}, protocol))["a"]
    np.testing.assert_array_equal(np.asarray(again), array)


@pytest.mark.parametrize("is_zip", [True, False])
def test_an_archive_of_pytorch_is_called_one(tmp_path, is_zip):  # N7
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, file, _use_new_zipfile_serialization=is_zip)
    refused(tmp_path, file.getvalue(), "is a PyTorch archive .* erk.from_epsilon")
