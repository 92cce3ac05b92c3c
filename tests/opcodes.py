"""A small assembler of pickles: each function gives the opcodes that push one object."""

import functools
import io
import pickle
import struct

import torch


def const(value):
    return pickle.dumps(value, 2)[2:-1]


def name(full):
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def raw(data):
    return pickle.BINBYTES + struct.pack("<I", len(data)) + data


def call(function, *arguments):
    return name(function) + b"(" + b"".join(arguments) + b"tR"


def state(target, *values):
    """BUILD `target` with the tuple of values."""
    return target + b"(" + b"".join(values) + b"tb"


@functools.cache
def torch_storage(count):
    """What torch 1.13 and later nest in a pickle for float32 values 0, 1, 2 …"""
    storage = torch.storage.TypedStorage(list(range(count)), dtype=torch.float32, _internal=True)
    file = io.BytesIO()
    torch.save(storage, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def storage(data=None):
    return call("torch.storage._load_from_bytes", raw(data or torch_storage(4)))


def tensor(offset, size, stride, data=None):
    arguments = const(offset), const(size), const(stride), const(False), const({})
    return call("torch._utils._rebuild_tensor_v2", storage(data), *arguments)


def dtype(code):
    return call("numpy.dtype", const(code), const(False), const(True))


def array(shape, code, data):
    empty = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), const((0,)))
    return state(empty, const(1), const(shape), dtype(code), const(False), data)


def nested_stream(body, keys=b"]"):
    """A torch file in the old format whose object `body` pushes, without any values."""
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})
    return b"".join(pickle.dumps(head, 2) for head in heads) + b"".join(
        b"\x80\x02" + part + b"." for part in (body, keys)
    )


def claimed_storage(count):
    key = const("storage"), name("torch.FloatStorage"), const("0"), const("cpu"), const(count)
    return nested_stream(b"(" + b"".join(key) + const(None) + b"tQ", b"]" + const("0") + b"a")
