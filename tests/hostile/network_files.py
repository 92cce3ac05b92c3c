"""Hostile networks and weights: pickles, safetensors with their JSON files, torch.save files."""

import io
import json
import pickle
import struct
import zipfile

import torch
from hostile.builders import CANARY, DEEP, HUGE, again_named, bomb
from hostile.formats import (
    KWARGS,
    card,
    framed,
    mapping,
    module,
    network_pickle,
    network_safetensors,
    state_dict,
    storage,
    tensor,
    zipped,
)
from opcodes import call, const, raw


def nest(levels, last, width=2):
    """Nest tuples in a few bytes per level: the result contains `last` 2^levels times."""
    body = last + b"q\x64"
    for _ in range(levels):
        body += b"0" + b"(" + b"h\x64" * width + b"t" + b"q\x64"
    return body


def shared_modules(levels):
    body = module("Part", {"_modules": mapping({}), "_parameters": mapping({})}) + b"q\x64"
    for _ in range(levels):
        inner = mapping({"a": b"h\x64", "b": b"h\x64"})
        body += b"0" + module("Part", {"_modules": inner}) + b"q\x64"
    return body


def network_of(state):
    return framed(mapping({"ema": module("Precond", state)}))


def again(function, big, *more, times=2000):
    """Call a function ``times`` times on one large value from the memo."""
    return framed(big + b"q\x07" + b"(" + call(function, b"h\x07", *more) * times + b"t")


SHELL = const(f"touch {CANARY}")
PYTHON = const(f"open('{CANARY}', 'w')")
GETATTR = call("builtins.getattr", call("builtins.__import__", const("os")), const("system"))


def pickles():
    return {
        "os.system": (framed(call("os.system", SHELL)), "requests 'os.system'"),
        "posix.system in a network": (
            framed(mapping({"ema": call("posix.system", SHELL)})),
            "requests 'posix.system'",
        ),
        "eval by a chain of getattr": (
            framed(GETATTR + b"(" + SHELL + b"tR"),
            "requests 'builtins",
        ),
        "attrgetter": (framed(call("operator.attrgetter", const("system"))), "requests 'operator"),
        "exec in a storage": (
            framed(
                call("torch.storage._load_from_bytes", raw(framed(call("builtins.exec", PYTHON))))
            ),
            "a storage in it requests 'builtins.exec'",
        ),
        "a pickle in a pickle": (
            framed(call("_pickle.loads", raw(framed(call("os.system", SHELL))))),
            "requests '_pickle",
        ),
        "torch.load in a pickle": (
            framed(call("torch.load", const("net.pkl"))),
            "requests 'torch.load'",
        ),
        "pickles inside numpy": (
            framed(
                call("numpy.core.multiarray.scalar", call("numpy.dtype", const("O8")), raw(b"x"))
            ),
            "type 'O8'",
        ),
        "a persistent id": (framed(b"Pnet\n"), "persistent id"),
        "a persistent id of any kind": (framed(SHELL + b"Q"), "persistent id"),
        "a memo of gigabytes": (
            framed(b"Nr\xff\xff\xff\x7f" + b"0" + b"j\xff\xff\xff\x7f"),
            "has no network",
        ),
        "a missing memo entry": (framed(b"j\xff\xff\xff\x7f"), "Memo"),
        "a billion laughs as a name of a class": (
            framed(
                call(
                    "torch_utils.persistence._reconstruct_persistent_obj",
                    mapping(
                        {"type": const("class"), "class_name": nest(40, const("ha")), "state": b"}"}
                    ),
                )
            ),
            "class name is not a string",
        ),
        "a billion laughs as a type": (
            framed(call("numpy.dtype", nest(40, const("ha")))),
            "which is not numeric",
        ),
        "a billion laughs as an encoding": (
            framed(call("_codecs.encode", const("a"), nest(40, const("ha")))),
            "encodes text as an unknown",
        ),
        "a billion laughs as a key": (
            framed(b"}" + nest(40, const(1)) + const(1) + b"s"),
            "adds an item to",
        ),
        "a billion laughs in a set": (
            framed(b"\x8f(" + nest(40, const(1)) + b"\x90"),
            "adds an item to",
        ),
        "a billion laughs in a frozen set": (
            framed(b"(" + nest(40, const(1)) + b"\x91"),
            "adds an item to",
        ),
        "a billion laughs as arguments": (
            network_of({"_init_kwargs": mapping({"channel_mult": nest(40, const(1))})}),
            "too many items",
        ),
        "a billion laughs as modules": (
            network_of({"_modules": mapping({"a": shared_modules(40)})}),
            "too many modules|too often",
        ),
        "arguments in themselves": (
            network_of({"_init_kwargs": mapping({"channel_mult": b"]q\x65h\x65a"})}),
            "in an unknown format",
        ),
        "a string copied": (
            again("_codecs.encode", const("a" * 10**6), const("latin1")),
            "too often",
        ),
        "an array copied": (
            again(
                "numpy.core.numeric._frombuffer",
                raw(bytes(10**6)),
                call("numpy.dtype", const("u1")),
                const((10**6,)),
                const("C"),
            ),
            "too often",
        ),
        "a storage copied": (
            again("torch.storage._load_from_bytes", raw(storage([0.0] * 250_000))),
            "too often",
        ),
        "a dictionary copied": (
            framed(
                mapping({str(i): b"N" for i in range(9)})
                + b"q\x07"
                + call("collections.OrderedDict", b"h\x07")
            ),
            "copies a dictionary",
        ),
        "a million sets": (framed(b"\x8f" * 1_000_000), "more than 250000 opcodes"),
        "lists in lists": (framed(b"]" * 100_000 + b"a" * 99_999), "has no network"),
        "bytes of a tebibyte": (framed(pickle.BINBYTES8 + struct.pack("<Q", 1 << 40)), "missing"),
        "a tensor of a tebibyte": (
            framed(
                call(
                    "torch._utils._rebuild_tensor_v2",
                    call("torch.storage._load_from_bytes", raw(storage([1.0]))),
                    const(0),
                    const((1 << 20, 1 << 20)),
                    const((0, 0)),
                )
            ),
            "larger than its storage",
        ),
        "a tensor of unbounded sizes": (
            framed(
                const(1 << 20_000)
                + b"q\x07"
                + call(
                    "torch._utils._rebuild_tensor_v2",
                    call("torch.storage._load_from_bytes", raw(storage([1.0]))),
                    const(0),
                    b"(" + b"h\x07" * 9000 + b"t",
                    const((0,)),
                )
            ),
            "too large",
        ),
        "an array of a tebibyte": (
            framed(
                call(
                    "numpy.core.numeric._frombuffer",
                    raw(bytes(8)),
                    call("numpy.dtype", const("u1")),
                    const((1 << 40,)),
                    const("C"),
                )
            ),
            "reshape",
        ),
        "a tensor that changes another": (
            framed(tensor(torch.ones(2)) + const(0) + const(5.0) + b"s"),
            "adds an item to a Tensor",
        ),
        "stack underflow": (framed(b"R" * 9), "IndexError"),
        "many blocks": (network_pickle(num_blocks=10**6), "more tensors than the file has"),
        "wide levels": (network_pickle(channel_mult=[1] * 10**5), "too many items"),
        "a network of petabytes": (network_pickle(model_channels=1 << 20), "does not fit"),
        "a resolution beyond the memory": (network_pickle(img_resolution=1 << 18), "does not fit"),
        "label_dim of None": (network_pickle(label_dim=None), "label_dim: .* not null"),
        "a string for a number": (
            network_pickle(sigma_data="0.5"),
            "sigma_data: .* not '0.5'",
        ),
        "an argument that is infinite": (network_pickle(dropout=float("inf")), "dropout: "),
        "a state dict that does not match": (
            network_of({"_init_kwargs": const(KWARGS), "_parameters": mapping({})}),
            "Missing key",
        ),
    }


def described(card_file, data=None):
    return {"net.safetensors": network_safetensors() if data is None else data,
            "net.json": card_file}  # fmt: skip


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<Q", len(text)) + text + data
    return described(card(body), body)


def entry(shape=(1,), start=0, end=4, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def changed(**kwargs):
    return described(
        card(network_safetensors(), architecture={"class": "Precond", "kwargs": KWARGS | kwargs})
    )


def safetensors():
    return {
        "a header of exabytes": ((1 << 60).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        "a header beyond the end": ((99).to_bytes(8, "little") + b"{}", "97 bytes are missing"),
        "a deep header": (with_header(DEEP.encode()), "not a safetensors file"),
        "an unbounded number": (
            with_header(b'{"a":{"data_offsets":[0,%b]}}' % HUGE.encode()),
            "not a safetensors file",
        ),
        "offsets beyond the end": (with_header({"a": entry(end=1 << 40)}), "bytes are missing"),
        "offsets that run backwards": (
            with_header({"a": entry(start=4, end=0)}, bytes(4)),
            "not a valid",
        ),
        "offsets below zero": (with_header({"a": entry(start=-4, end=0)}, bytes(4)), "not a valid"),
        "tensors that overlap": (
            with_header({"a": entry(), "b": entry()}, bytes(4)),
            "not a valid",
        ),
        "an unbounded shape": (
            with_header({"a": entry((1 << 40, 1 << 40))}, bytes(4)),
            "not a valid",
        ),
        "a duplicate key": (
            with_header(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
            "a",
        ),
        "an unknown type": (with_header({"a": entry(dtype="X99")}, bytes(4)), "not a valid"),
        "integers for weights": (with_header({"a": entry(dtype="I32")}, bytes(4)), "floating"),
        "a name of two lines": (with_header({"a\n\x1b[2J": entry()}, bytes(4)), "Missing key"),
        "bytes of no tensor": (with_header({"a": entry()}, bytes(99)), "not a valid"),
        "a deep card": (described(DEEP.encode()), "must name 'architecture' and 'encoder'"),
        "a card of NaN": (
            described(card(network_safetensors(), more=float("nan"))),
            "must name 'architecture' and 'encoder'",
        ),
        "many blocks": (changed(num_blocks=10**6), "more tensors than the file has"),
        "a resolution of gigapixels": (changed(img_resolution=10**6), "does not fit"),
        "another class": (
            described(
                card(network_safetensors(), architecture={"class": "os.system", "kwargs": {}})
            ),
            "holds a 'os.system'",
        ),
        "another encoder": (
            described(card(network_safetensors(), encoder={"class": "eval", "kwargs": {}})),
            "unknown encoder 'eval'",
        ),
        "too many noise levels": (
            described(
                card(
                    network_safetensors(),
                    architecture={
                        "class": "iDDPMPrecond",
                        "kwargs": {
                            "model_type": "DhariwalUNet",
                            "img_resolution": 4,
                            "img_channels": 1,
                            "M": 1 << 20,
                        },
                    },
                )
            ),
            "M must be",
        ),
    }


def torch_pickle(body, name="data.pkl", packing=zipfile.ZIP_STORED, more=()):
    """Build a torch.save file whose pickle, in the member ``name``, is ``body``."""
    with zipfile.ZipFile(io.BytesIO(state_dict())) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    member, _ = members[0]
    described = framed(body).replace(b"\x80\x04", b"\x80\x02")
    first = (member.replace("data.pkl", name), described)
    return zipped([first, *members[1:], *more], packing)


GIGABYTES = call("builtins.bytearray", const(20 << 30))
LONG = b"X" + struct.pack("<I", 67 << 20) + b"x" * (67 << 20)  # a string


def persistent(key, count=1):
    """Opcodes that push a storage of float32 numbers."""
    fields = const("storage") + b"ctorch\nFloatStorage\n" + key + const("cpu") + const(count)
    return b"(" + fields + b"tQ"


def old_file(body, values=b""):
    """Build a torch.save file from before the zip format, whose content is ``body``."""
    heads = [const(0x1950A86A20F9469CFC6C), const(1001), b"}", body, b"]"]
    return b"".join(framed(part).replace(b"\x80\x04", b"\x80\x02", 1) for part in heads) + values


def overlapping_weights():
    """Build a torch.save file with a second name for the bytes of its first storage."""
    with zipfile.ZipFile(io.BytesIO(state_dict())) as archive:
        plain = zipped([(name, archive.read(name)) for name in archive.namelist()])
    return again_named(plain, b"archive/data/0", b"archive/data/8")


def weights():
    seen = r"requests 'builtins.bytearray', which is not allowed"
    return {
        "os.system": (torch_pickle(call("os.system", SHELL)), "requests 'os.system'"),
        "eval": (torch_pickle(call("builtins.eval", PYTHON)), "requests 'builtins.eval'"),
        "a bytearray of gigabytes": (torch_pickle(GIGABYTES), seen),
        "a string copied": (
            torch_pickle(call("_codecs.encode", const("a" * 10**6), const("latin1")) * 9),
            "requests '_codecs.encode'",
        ),
        "the same under a name in capitals": (torch_pickle(GIGABYTES, "data.PKL"), "no data.pkl"),
        "the same beside a harmless one": (
            torch_pickle(b"}", "data.pk", more=[("archive/DATA.PKL", framed(GIGABYTES))]),
            "no data.pkl",
        ),
        "the same compressed": (torch_pickle(GIGABYTES, packing=zipfile.ZIP_DEFLATED), "cannot be"),
        "an old file of a bytearray": (framed(GIGABYTES), seen),
        "an old file that ends as a zip": (framed(GIGABYTES) + zipped([("a", b"")]), seen),
        "an old file of 67 MB": (framed(b"(" + LONG + GIGABYTES + b"t"), seen),
        "a bomb": (bomb("a/data.pkl", "a/data/0", "a/version"), "grows from"),
        "a zip behind a zip": (torch_pickle(GIGABYTES) + torch_pickle(b"}"), "has no tensor"),
        "a billion laughs as a key": (  # H6
            torch_pickle(b"}" + nest(40, const(1)) + const(1) + b"s"),
            "adds an item to a dict",
        ),
        "a billion laughs as a key of a storage": (  # H6
            torch_pickle(persistent(nest(40, const("a")))),
            "does not describe a storage",
        ),
        "integer keys of one hash": (  # H4
            torch_pickle(const({i * (2**61 - 1): None for i in range(1, 9)})),
            "adds an item to a dict",
        ),
        "a storage of a tebibyte": (torch_pickle(persistent(const("0"), 1 << 40)), "another size"),
        "a storage of no member": (torch_pickle(persistent(const("9"))), "has no archive/data/9"),
        "an old storage of a tebibyte": (old_file(persistent(const("0"), 1 << 40)), "truncated"),
        "old storages that add up": (
            old_file(b"(" + b"".join(persistent(const(str(i)), 250_000) for i in range(99)) + b"t",
                     bytes(10**6)),
            "truncated",
        ),
        "a tensor of a tebibyte": (
            torch_pickle(call("torch._utils._rebuild_tensor_v2", persistent(const("0"), 6),
                              const(0), const((1 << 20, 1 << 20)), const((0, 0)))),
            "larger than its storage",
        ),
        "members that overlap": (overlapping_weights(), "overlaps with another member"),  # H5
        "no state dict": (torch_pickle(b"]"), "not a state dict"),
        "another shape": (torch_pickle(b"}"), "has no tensor"),
    }
