"""Files that are FIFOs or devices are refused by every reader, and changing files by their hash."""

import os

import pytest
from hostile.formats import FORMATS, KEY, STORED, StoredExtractor, read_features

from erk.analysis.toy_networks import CHECKPOINTS, load_network
from erk.calibration.card import read_card
from erk.generation.options import labels_of
from erk.io import files
from erk.io.config import read_yaml
from erk.io.files import IrregularFileError, read_hashed, unchanged
from metrics import reference_files, store
from metrics.extractors import classifier
from metrics.extractors.weights import load_weights
from metrics.reference_files import read_reference

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


@pytest.fixture(params=["fifo", "device"])
def irregular(request):
    """Return a function that puts a FIFO or a link to /dev/zero at a path."""

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path) if request.param == "fifo" else path.symlink_to("/dev/zero")
        return path

    return put


@pytest.mark.parametrize("read", [
    read_yaml, lambda path: labels_of(str(path), None), read_reference, read_card,
    lambda path: load_weights(str(path), "", {}), read_hashed, files.sha256_of,
])  # fmt: skip
def test_single_files(read, irregular, tmp_path):  # M23
    with pytest.raises(OSError, match="is a FIFO, a device or a socket: give a regular file"):
        read(irregular(tmp_path / "file"))


@pytest.mark.parametrize("name", ["digits.safetensors", "digits.json"])
def test_a_classifier_and_its_card(name, irregular, tmp_path):  # M23
    for path, data in FORMATS["classifier"].sound().items():
        (tmp_path / path).write_bytes(data)
    irregular(tmp_path / name)
    with pytest.raises(IrregularFileError):
        classifier.load("digits", weights=tmp_path / "digits.safetensors")


@pytest.mark.parametrize("name", ["toy-main.safetensors", "toy-main.json"])
def test_a_toy_network_and_its_metadata(name, irregular, tmp_path):  # M23
    for path in CHECKPOINTS.glob("toy-main.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    irregular(tmp_path / name)
    with pytest.raises(OSError, match=name):
        load_network("toy-main", tmp_path)


def test_a_store_of_features(irregular, tmp_path):  # M23
    irregular(tmp_path / STORED)
    with pytest.raises(OSError):
        read_features(tmp_path)


def test_a_store_does_not_hold_an_irregular_file(irregular, tmp_path):  # M23
    irregular(tmp_path / STORED)
    assert not store.holds(tmp_path, StoredExtractor(), KEY, ["features"], 3)


# --- hashes of what was read


def test_labels_have_the_hash_of_the_bytes_that_were_read(tmp_path, monkeypatch):  # M17
    path = tmp_path / "labels.txt"
    path.write_bytes(b"0 1\n")
    expected = f"file {read_hashed(path)[1]}"
    read = files.read_regular

    def then_change(*arguments):
        data = read(*arguments)
        path.write_bytes(b"0 2\n")
        return data

    monkeypatch.setattr(files, "read_regular", then_change)
    assert labels_of(str(path), None) == ({0: 1}, expected)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_labels_with_a_byte_order_mark(tmp_path, mark):  # F10
    (tmp_path / "labels.txt").write_bytes(mark + b"0 3\n7,4 # seven\n")
    assert labels_of(str(tmp_path / "labels.txt"), None)[0] == {0: 3, 7: 4}


@pytest.mark.parametrize("is_replaced", [True, False])
@pytest.mark.parametrize("kind", ["reference npz", "plain npz", "reference pickle"])
def test_a_reference_that_changes_while_it_is_read(tmp_path, monkeypatch, kind, is_replaced):  # M17
    ((name, data),) = FORMATS[kind].sound().items()
    path = tmp_path / name
    path.write_bytes(data)
    assert read_reference(path).sha256 == read_hashed(path)[1]
    check = reference_files.check_finite

    def then_change(*arguments):
        other = path.with_name("other") if is_replaced else path
        other.write_bytes(data + b" ")
        os.replace(other, path)
        return check(*arguments)

    monkeypatch.setattr(reference_files, "check_finite", then_change)
    with pytest.raises(ValueError, match=f"{name} changed while it was read: run the command"):
        read_reference(path)


def test_a_file_that_does_not_change(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with unchanged(tmp_path / "a") as sha256:
        assert sha256.startswith("ba7816bf")  # of "abc" (FIPS 180-2)
