"""Pickles: released files are read bit for bit, hostile ones refused; nothing in them runs."""

import hashlib
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, manifest, pickle_paths
from opcodes import (
    array,
    call,
    claimed_storage,
    const,
    dtype,
    name,
    nested_stream,
    raw,
    state,
    storage,
    tensor,
    torch_storage,
)

from erk.io import pickles

ROOT = Path(__file__).parents[2]
NETS = sorted(manifest()["nets"])
FILES = [path for net in NETS for path in pickle_paths(net)]
GLOBALS = json.loads((GOLDEN / "globals.json").read_text())


def case_name(value):
    """Name a case: opcodes are no text, and those of a storage differ between processes."""
    return value if isinstance(value, str) else "case"


@pytest.fixture
def load(tmp_path):
    def load(body, file="file.pkl"):
        path = tmp_path / file
        path.write_bytes(b"\x80\x04" + body + b".")
        return pickles.load(path)

    return load


def sentence(error):
    """Return the text of an error: one short sentence without advice to be careless."""
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and text.endswith(".") and ".." not in text
    assert "weights_only" not in text
    return text


# Released files


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_golden_pickles_are_read_bit_for_bit(path):
    content, net = pickles.load(path), manifest()["nets"][path.name.split(".")[0]]
    facts, data = GLOBALS[path.name], path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == facts["sha256"]
    assert sorted(content) == sorted(facts["keys"])
    record = content["ema"]
    assert record.class_name == facts["class_name"] == net["cls"]
    tensors = dict(record.tensors())
    count = sum(t.numel() for t in tensors.values())
    assert count == net["num_params"] + net["num_buffer_values"]
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{net['weights_dtype']}"}
    for key, value in tensors.items():  # the file holds the very bytes of every tensor
        assert value.numpy().tobytes() in data, key


@pytest.mark.parametrize("net", [n for n in NETS if len(pickle_paths(n)) == 2])
def test_old_and_new_stacks_give_the_same_record(net):
    new, old = (pickles.load(path)["ema"] for path in pickle_paths(net))
    assert json.dumps(new.init_kwargs, default=float) == json.dumps(old.init_kwargs, default=float)
    assert (
        json.loads(json.dumps(new.init_kwargs, default=float)).items()
        >= {key: value for key, value in manifest()["nets"][net]["init_kwargs"].items()}.items()
    )
    first, second = dict(new.tensors()), dict(old.tensors())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_no_other_repository_is_imported():
    """With every foreign package of the originals forbidden, and with a tripwire on code."""
    script = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch_utils', 'dnnlib', 'training'):
            raise AssertionError(f'{name} was imported')
import torch, numpy
from erk.io import pickles
sys.meta_path.insert(0, Forbidden())
print(sum(len(list(pickles.load(p)['ema'].tensors())) > 9 for p in sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, FILES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout.strip(), done.returncode) == (str(len(FILES)), 0), done.stderr


def test_stored_source_is_kept_out(load, tmp_path):
    marker = tmp_path / "executed"
    meta = {
        "type": "class",
        "version": 6,
        "module_src": f"open({str(marker)!r}, 'w')",
        "class_name": "Precond",
        "state": {"_init_kwargs": {"label_dim": 3}, "_parameters": {}},
    }
    record = load(call("torch_utils.persistence._reconstruct_persistent_obj", const(meta)))
    assert (record.class_name, record.init_kwargs) == ("Precond", {"label_dim": 3})
    assert not marker.exists()
    assert "module_src" not in repr(vars(record))


def test_transient_buffers_and_missing_parts_are_left_out():
    child = pickles.Record("Inner", {"_parameters": {"weight": torch.ones(2), "bias": None}})
    buffers = {"kept": torch.zeros(1), "cache": torch.zeros(9)}
    top = pickles.Record("Outer", {
        "_buffers": buffers, "_non_persistent_buffers_set": {"cache"},
        "_modules": {"inner": child, "absent": None},
    })  # fmt: skip
    assert [key for key, _ in top.tensors()] == ["kept", "inner.weight"]


# Hostile files


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (call("os.system", const("touch {0}")), "os.system"),
        (call("posix.system", const("touch {0}")), "posix.system"),
        (call("subprocess.Popen", const(["touch", "{0}"])), "subprocess.Popen"),
        (call("builtins.eval", const("open('{0}', 'w')")), "builtins.eval"),
        (call("__builtin__.exec", const("open('{0}', 'w')")), "__builtin__.exec"),
        (call("builtins.getattr", const(""), const("__class__")), "builtins.getattr"),
        (call("operator.attrgetter", const("__class__")), "operator.attrgetter"),
        (call("torch.load", const("{0}")), "torch.load"),
        (call("torch._utils.torch.load", const("{0}")), "torch._utils.torch.load"),
        (call("torch.storage._load_from_bytes.__globals__.get"), "torch.storage"),
        (call("numpy.load", const("{0}")), "numpy.load"),
        (call("erk.io.pickles._storage", const("{0}")), "erk.io.pickles._storage"),
        (b"(" + const("touch {0}") + b"ios\nsystem\n", "os.system"),  # opcode INST
        (b"(" + name("os.system") + const("touch {0}") + b"o", "os.system"),  # opcode OBJ
        (const("os") + const("system") + pickle.STACK_GLOBAL, "os.system"),
        (name("builtins.object") + b")" + pickle.NEWOBJ, "builtins.object"),
    ],
    ids=case_name,
)
def test_foreign_globals_are_refused_by_name(load, tmp_path, body, named):
    marker = tmp_path / "m"
    body = with_marker(body, str(marker))
    with pytest.raises(ValueError, match="which is not allowed") as error:
        load(body)
    assert f"requests '{named}" in sentence(error)
    assert not marker.exists()


def with_marker(body, marker):
    """Replace {0} with the path of the marker, and the length of its string (BINUNICODE)."""
    head, mark, rest = body.partition(b"{0}")
    if not mark:
        return body
    start = head.rindex(b"X")
    (length,) = struct.unpack("<I", head[start + 1 : start + 5])
    renewed = struct.pack("<I", length + len(marker) - len(mark))
    return head[: start + 1] + renewed + head[start + 5 :] + marker.encode() + rest


def test_the_payloads_are_real(tmp_path):
    """Python's reader does run one of them."""
    marker = tmp_path / "m"
    body = with_marker(call("builtins.eval", const("open('{0}', 'w').close()")), str(marker))
    pickle.loads(b"\x80\x04" + body + b".")
    assert marker.exists()


@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "posix.system", "torch.load"])
def test_globals_of_a_nested_storage_are_refused_by_name(load, tmp_path, function):
    marker = tmp_path / "m"
    command = {"os.system": f"touch {marker}", "posix.system": f"touch {marker}"}
    inner = call(function, const(command.get(function, f"open({str(marker)!r}, 'w')")))
    for data in (nested_stream(inner), b"\x80\x02" + inner + b"."):
        with pytest.raises(ValueError) as error:
            load(storage(data))
        assert f"a storage in it requests '{function}'" in sentence(error)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"Pos.system\n", "persistent id"),
        (const("os.system") + pickle.BINPERSID, "persistent id"),
        (pickle.EXT1 + b"\x01", "by number"),
        (pickle.NEXT_BUFFER, "buffer"),
        (b"\xff", "255"),
        (b"h\x07", "Memo"),
        (pickle.REDUCE, "IndexError"),
        (const("x") + b")R", "not callable"),
        (array((2,), "O8", const([1, 2])), "type 'O8'"),
        (array((2,), "V8", raw(bytes(16))), "type 'V8'"),
        (array((1,), "f4", const([1.0])), "not numeric"),
        (array((10**6, 10**6), "f8", raw(bytes(8))), "does not match its bytes"),
        (array((2**62, 2**62), "f8", raw(bytes(8))), "does not match its bytes"),
        (array((-1,), "f8", raw(bytes(8))), "too large, or not of integers"),
        (call("numpy.core.multiarray.scalar", dtype("O8"), const(1)), "type 'O8'"),
        (call("numpy.core.multiarray.scalar", dtype("f8"), raw(b"1234")), "ValueError"),
        (tensor(0, (5,), (1,)), "larger than its storage"),
        (tensor(0, (10**9, 10**9), (0, 0)), "larger than its storage"),
        (tensor(0, (2, 2), (2, 2)), "out of bounds"),
        (tensor(3, (2,), (1,)), "out of bounds"),
        (tensor(-1, (2,), (1,)), "offset -1"),
        (tensor(0, (2,), (-1,)), "not of integers"),
        (tensor(0, (-2, -2), (1, 1)), "not of integers"),
        (tensor(0, (2**62, 4), (1, 1)), "larger than its storage"),
        (tensor(0, "ab", (1,)), "not of integers"),
        (storage(b"hello"), "a storage in it cannot be read"),
        (storage(b"}."), "is truncated"),
        (storage(nested_stream(const(5))), "a storage in it has an unknown format"),
        (storage(nested_stream(const(1) * 6 + b"(112233tQ")), "a storage in it "),
        (storage(claimed_storage(10)), "is truncated"),  # 40 bytes never written
        (storage(claimed_storage(10**6)), "is truncated"),
        (storage(claimed_storage(10**16)), "is truncated"),
        (storage(claimed_storage(2) + struct.pack("<q", 2) + bytes(4)), "is truncated"),
        (storage(claimed_storage(1) + struct.pack("<q", 2) + bytes(8)), "is truncated"),
        (storage(claimed_storage(-1) + struct.pack("<q", -1)), "is truncated"),
        (storage(torch_storage(4)[:-5]), "is truncated"),
        (call("_codecs.encode", const("abc"), const("rot13")), "rot13"),
        (call("torch_utils.persistence._reconstruct_persistent_obj", const([])), "persistent"),
        (
            call("torch_utils.persistence._reconstruct_persistent_obj", const({"type": "class"})),
            "a class name is not a string",
        ),
        (
            call(
                "torch_utils.persistence._reconstruct_persistent_obj",
                const({"type": "class", "class_name": "Precond"}),
            ),
            "not a dictionary",
        ),
    ],
    ids=case_name,
)
def test_malformed_objects_are_refused_in_one_sentence(load, body, reason):
    with pytest.raises(ValueError, match="cannot be read safely") as error:
        load(body)
    assert reason in sentence(error)


SHAPE = (storage(), const(0), const((10**9, 1000)), const((0, 0)))  # what Tensor.set_ would take


@pytest.mark.parametrize(
    "body",
    [
        state(tensor(0, (2,), (1,)), *SHAPE),
        state(name("torch._utils._rebuild_tensor_v2"), const(None), const({"__code__": 1})),
        state(name("torch.nn.modules.container.ModuleDict"), const(None), const({"state": 1})),
        state(name("dnnlib.util.EasyDict"), const(None), const({"attribute": 1})),
        state(name("numpy.dtype"), const(None), const({"dtype": 1})),
        state(call("dnnlib.util.EasyDict"), const(None), const({"attribute": 1})),
        call("collections.OrderedDict") + const({"attribute": 1}) + b"b",
    ],
    ids=case_name,
)
def test_only_records_and_arrays_can_be_given_a_state(load, body):
    before = {key: dict(vars(value)) for key, value in pickles._ALLOWED.items()
              if value not in (dict,) and hasattr(value, "__dict__")}  # fmt: skip
    with pytest.raises(ValueError, match="it tries to change a ") as error:
        load(body)
    sentence(error)
    assert before == {key: dict(vars(pickles._ALLOWED[key])) for key in before}


def test_no_view_outlives_the_memory_of_an_array(load):
    """Array, a view of it, then the array again with other memory: the view would dangle."""
    target = array((4,), "u1", raw(b"abcd")) + b"q\x01"
    view = call("numpy.core.numeric._frombuffer", b"h\x01", dtype("u1"), const((4,)), const("C"))
    with pytest.raises(ValueError, match="not numeric"):
        load(target + b"0" + view)


def test_claims_of_size_reserve_no_memory(load):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load(b"N" + pickle.LONG_BINPUT + struct.pack("<I", 2**25)) is None
    for opcode in (pickle.BINBYTES8, pickle.BINUNICODE8, pickle.BYTEARRAY8, pickle.FRAME):
        with pytest.raises(ValueError, match=f"at least {2**40 - 5} bytes are missing") as error:
            load(opcode + struct.pack("<Q", 2**40) + b"abcd")
        sentence(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB; Python's reader in C takes 500 MB for the first of them


def test_shared_and_cyclic_references_are_kept(load):
    shared = load(tensor(0, (2, 2), (2, 1)) + b"q\x09" + b"h\x09" + b"\x86")
    assert shared[0] is shared[1]
    assert torch.equal(shared[0], torch.arange(4.0).reshape(2, 2))
    cycle = load(b"]q\x05h\x05a")
    assert cycle[0] is cycle


def test_strides_and_offsets_within_the_storage_are_kept(load):
    assert load(tensor(1, (3,), (1,))).tolist() == [1, 2, 3]
    assert load(tensor(0, (2, 2), (1, 2))).tolist() == [[0, 2], [1, 3]]
    assert load(tensor(2, (), ())).item() == 2


# Broken files


def test_a_cut_anywhere_says_what_is_missing(tmp_path):
    data = pickle_paths("edm2_auto")[0].read_bytes()
    path = tmp_path / "cut.pkl"
    random = np.random.RandomState(0).randint(40, len(data), 60).tolist()
    for cut in [*range(1, 40), *random, *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is truncated: at least [0-9]+ bytes") as error:
            pickles.load(path)
        words = sentence(error).removeprefix(str(path)).split()
        missing, end = int(words[words.index("least") + 1]), int(words[-4].rstrip(";"))
        assert end == cut and 1 <= missing <= len(data) - cut


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "begins with b'<!DO'"),
        (b"hello\n", "begins with b'hell'"),
        (b"cos\nsystem\n(S'true'\ntR.", "begins with b'cos"),  # protocol 0
    ],
    ids=case_name,
)
def test_other_files_are_called_what_they_are(tmp_path, data, reason):
    path = tmp_path / "other.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a pickle") as error:
        pickles.load(path)
    assert reason in sentence(error)


def test_a_zip_a_folder_and_a_missing_file_are_called_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pkl", "w") as file:
        file.writestr("data.pkl", "x")
    with pytest.raises(ValueError, match="is a PyTorch archive"):
        pickles.load(tmp_path / "a.pkl")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        pickles.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        pickles.load(tmp_path / "none.pkl")
