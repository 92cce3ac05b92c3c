"""Hostile files, made by code: what they try, the format, the files, and what must be said."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import torch
from hostile.formats import (
    KWARGS,
    PICTURES,
    STORED,
    TABLE,
    Files,
    card,
    features,
    images_folder,
    mapping,
    module,
    network_pickle,
    network_safetensors,
    npz,
    png,
    run_folder,
    state_dict,
    storage,
    tensor,
    whole,
    zipped,
)
from opcodes import call, const, raw
from PIL import Image
from safetensors.numpy import save

CANARY = "canary"  # the file that every payload would make
DEEP = "[" * 100_000
HUGE = "9" * 5000


class Case(NamedTuple):
    """One hostile set of files."""

    name: str
    format: str
    files: Files
    says: str  # a regular expression, found in the error


def deflated(size):
    """A stream of so many zero bytes, some thousand times shorter, and made as fast."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + packer.flush()


def zlibbed(size):
    return b"\x78\xda" + deflated(size) + bytes(4)


def lying_zip(*members, method=8, flags=0):
    """A zip of (name, stream, size) members, which nobody has checked."""
    body = central = b""
    for name, stream, size in members:
        told = struct.pack(
            "<HHHHHIIIHH", 20, flags, method, 0, 0x21, 0, len(stream), size, len(name), 0
        )
        central += (
            b"PK\x01\x02"
            + struct.pack("<H", 20)
            + told
            + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
            + name
        )
        body += b"PK\x03\x04" + told + name + stream
    count = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(central), len(body), 0)
    return body + central + end


def bomb(*names, size=400 << 20):
    return lying_zip(*((name.encode(), deflated(size), size) for name in names))


def npy(shape, descr="|u1", data=b"", is_fortran=False):
    """An array's file whose header says what we say."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": is_fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def npy_text(header):
    """An array's file with any header at all."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz_of(packing=zipfile.ZIP_STORED, **members):
    return zipped([(f"{name}.npy", data) for name, data in members.items()], packing)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth=8, colour=0, stream=b"", before=b""):
    """A PNG file of any size; its pixels are the stream."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rest = chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + rest


def blank(width, height):
    """A grey PNG of zeros, a thousandth of its pixels."""
    return png_of(width, height, stream=zlibbed(height * (width + 1)))


def animated():
    file = io.BytesIO()
    frames = [Image.new("L", (3, 4), shade) for shade in (0, 90)]
    frames[0].save(file, "png", save_all=True, append_images=frames[1:])
    return file.getvalue()


def scans(count):
    """A progressive JPEG file that goes over its pixels again and again."""
    data = png((9, 9, 9), (64, 64), "RGB", format="jpeg", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    return data[:first] + data[first:second] * count + data[second:]


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 4\n%%EndComments\n"
    b"(canary) (w) file closefile showpage\n%%EOF\n"
)


def nest(levels, last, width=2):
    """A tuple of tuples of tuples ... in a few bytes a level: 2^levels times `last`."""
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
    return whole(mapping({"ema": module("Precond", state)}))


def again(function, big, *more, times=2000):
    """Call a function on one big text, kept in the memo, over and over."""
    return whole(big + b"q\x07" + b"(" + call(function, b"h\x07", *more) * times + b"t")


SHELL = const(f"touch {CANARY}")
PYTHON = const(f"open('{CANARY}', 'w')")
GETATTR = call("builtins.getattr", call("builtins.__import__", const("os")), const("system"))


def pickles():
    return {
        "os.system": (whole(call("os.system", SHELL)), "requests 'os.system'"),
        "posix.system in a network": (
            whole(mapping({"ema": call("posix.system", SHELL)})),
            "requests 'posix.system'",
        ),
        "eval by a chain of getattr": (whole(GETATTR + b"(" + SHELL + b"tR"), "requests 'builtins"),
        "attrgetter": (whole(call("operator.attrgetter", const("system"))), "requests 'operator"),
        "exec in a storage": (
            whole(
                call("torch.storage._load_from_bytes", raw(whole(call("builtins.exec", PYTHON))))
            ),
            "a storage in it requests 'builtins.exec'",
        ),
        "a pickle in a pickle": (
            whole(call("_pickle.loads", raw(whole(call("os.system", SHELL))))),
            "requests '_pickle",
        ),
        "torch.load in a pickle": (
            whole(call("torch.load", const("net.pkl"))),
            "requests 'torch.load'",
        ),
        "numpy's own pickles": (
            whole(
                call("numpy.core.multiarray.scalar", call("numpy.dtype", const("O8")), raw(b"x"))
            ),
            "type 'O8'",
        ),
        "a persistent id": (whole(b"Pnet\n"), "persistent id"),
        "a persistent id of any kind": (whole(SHELL + b"Q"), "persistent id"),
        "a memo of gigabytes": (
            whole(b"Nr\xff\xff\xff\x7f" + b"0" + b"j\xff\xff\xff\x7f"),
            "has no network",
        ),
        "a memo that is not there": (whole(b"j\xff\xff\xff\x7f"), "Memo"),
        "laughs as a name of a class": (
            whole(
                call(
                    "torch_utils.persistence._reconstruct_persistent_obj",
                    mapping(
                        {"type": const("class"), "class_name": nest(40, const("ha")), "state": b"}"}
                    ),
                )
            ),
            "class name is not a string",
        ),
        "laughs as a type": (
            whole(call("numpy.dtype", nest(40, const("ha")))),
            "which is not numeric",
        ),
        "laughs as an encoding": (
            whole(call("_codecs.encode", const("a"), nest(40, const("ha")))),
            "encodes text as an unknown",
        ),
        "laughs as a key": (
            whole(b"}" + nest(40, const(1)) + const(1) + b"s"),
            "adds an item to",
        ),
        "laughs in a set": (whole(b"\x8f(" + nest(40, const(1)) + b"\x90"), "adds an item to"),
        "laughs in a frozen set": (
            whole(b"(" + nest(40, const(1)) + b"\x91"),
            "adds an item to",
        ),
        "laughs as arguments": (
            network_of({"_init_kwargs": mapping({"channel_mult": nest(40, const(1))})}),
            "too many items",
        ),
        "laughs as modules": (
            network_of({"_modules": mapping({"a": shared_modules(40)})}),
            "too many modules",
        ),
        "arguments in themselves": (
            network_of({"_init_kwargs": mapping({"channel_mult": b"]q\x65h\x65a"})}),
            "in an unknown format",
        ),
        "a text copied": (
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
            whole(
                mapping({str(i): b"N" for i in range(9)})
                + b"q\x07"
                + call("collections.OrderedDict", b"h\x07")
            ),
            "copies a dictionary",
        ),
        "a million sets": (whole(b"\x8f" * 1_000_000), "more than 250000 opcodes"),
        "lists in lists": (whole(b"]" * 100_000 + b"a" * 99_999), "has no network"),
        "bytes of a tebibyte": (whole(pickle.BINBYTES8 + struct.pack("<Q", 1 << 40)), "missing"),
        "a tensor of a tebibyte": (
            whole(
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
        "a tensor of sizes without an end": (
            whole(
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
            whole(
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
            whole(tensor(torch.ones(2)) + const(0) + const(5.0) + b"s"),
            "adds an item to a Tensor",
        ),
        "stack underflow": (whole(b"R" * 9), "IndexError"),
        "many blocks": (network_pickle(num_blocks=10**6), "more tensors than the file has"),
        "wide levels": (network_pickle(channel_mult=[1] * 10**5), "too many items"),
        "a network of petabytes": (network_pickle(model_channels=1 << 20), "does not fit"),
        "a resolution beyond the memory": (network_pickle(img_resolution=1 << 18), "does not fit"),
        "classes that are none": (network_pickle(label_dim=None), "label_dim has a wrong type"),
        "a text for a number": (
            network_pickle(sigma_data="0.5"),
            "sigma_data has a wrong type",
        ),
        "an argument that is infinite": (network_pickle(dropout=float("inf")), "dropout has a"),
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
        "a number without an end": (
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
        "a shape without an end": (
            with_header({"a": entry((1 << 40, 1 << 40))}, bytes(4)),
            "not a valid",
        ),
        "a key that is there twice": (
            with_header(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
            "a",
        ),
        "an unknown type": (with_header({"a": entry(dtype="X99")}, bytes(4)), "not a valid"),
        "whole numbers for weights": (with_header({"a": entry(dtype="I32")}, bytes(4)), "floating"),
        "a name of two lines": (with_header({"a\n\x1b[2J": entry()}, bytes(4)), "Missing key"),
        "bytes that nobody owns": (with_header({"a": entry()}, bytes(99)), "not a valid"),
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
        "levels of noise without an end": (
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


PIXELS = bytes(12)


def arrays():
    return {
        "objects": (npz(arr_0=np.array([None, None])), "Object arrays are refused"),
        "an array of an exbibyte": (npz_of(arr_0=npy((1 << 30, 1 << 30, 1, 1))), "not match its b"),
        "images without pixels": (npz_of(arr_0=npy((10**9, 0, 4, 1))), "not match its bytes"),
        "few images without pixels": (npz_of(arr_0=npy((3, 0, 4, 1))), "must be uint8"),
        "a shape below zero": (npz_of(arr_0=npy((-3, -4, 1, 1), data=PIXELS)), "not match its b"),
        "less than it says": (npz_of(arr_0=npy((3, 4, 3, 1), data=PIXELS)), "not match its bytes"),
        "another type": (npz_of(arr_0=npy((3, 4, 1, 1), "<f4", PIXELS * 4)), "must be uint8"),
        "another shape": (npz_of(arr_0=npy((3, 4), data=PIXELS)), "must be uint8"),
        "texts of a gigabyte": (npz_of(arr_0=npy((1,), "<U1000000000")), "a malformed header"),
        "a type of records": (npz_of(arr_0=npy((1,), [("a", "<f8", (10**9,))])), "malformed h"),
        "a deep header": (npz_of(arr_0=npy_text("(" * 9000)), "a malformed header"),
        "a header that is a program": (
            npz_of(arr_0=npy_text(f"{{'descr': open('{CANARY}', 'w')}}")),
            "a malformed header",
        ),
        "a header of odd keys": (
            npz_of(arr_0=npy_text("{1: 2, 'a': 3, (): 4}")),
            "a malformed header",
        ),
        "a header without an end": (
            npz_of(arr_0=b"\x93NUMPY\x02\x00\xff\xff\xff\xff"),
            "a malformed header",
        ),
        "a bomb": (bomb("arr_0.npy"), "grows from [0-9]+ to"),
        "a bomb that lies": (lying_zip((b"arr_0.npy", deflated(400 << 20), 1000)), "damaged"),
        "labels that are none": (
            npz_of(arr_0=npy((3, 4, 1, 1), data=PIXELS), labels=npy((3, 10**9, 0))),
            "not match its bytes",
        ),
        "not a zip": (b"PK\x03\x04" + bytes(99), "not a readable npz"),
    }


EVIL = [*PICTURES.items()]


def zips():
    return {
        "names that climb": (
            zipped([("../../canary.png", b"x"), ("..\\canary.png", b"x"), *EVIL]),
            "not a readable im",
        ),
        "absolute names": (zipped([("/canary.png", b"x"), *EVIL]), "not a readable image"),
        "a link": (zipped([("000009.png", b"/etc/passwd"), *EVIL]), "not a readable image"),
        "a name that is there twice": (zipped([*EVIL, EVIL[0]]), "holds 000000.png twice"),
        "a name of two lines": (zipped([("a\n\x1b[2Jb.png", b"x"), *EVIL]), "not a readable image"),
        "a name that is a number without an end": (
            zipped([(f"{HUGE[:500]}.png", b"x"), *EVIL]),
            "not a readable image",
        ),
        "bombs": (bomb("0.png", "1.png"), "not a readable image"),
        "bombs that lie": (
            lying_zip(*((name, deflated(400 << 20), 1000) for name in (b"0.png", b"1.png"))),
            "not a readable image",
        ),
        "bombs of bzip2": (
            zipped([("0.png", bytes(1 << 20)), ("1.png", b"x")], zipfile.ZIP_BZIP2),
            "not a readable image",
        ),
        "a bomb as run.json": (bomb("0.png", "1.png", "run.json"), "run.json in it grows from"),
        "a bomb as dataset.json": (bomb("0.png", "1.png", "dataset.json"), "dataset.json in it gr"),
        "a locked member": (
            zipped([*EVIL]).replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
            ),
            "not a readable image",
        ),
        "cut off": (zipped([*EVIL])[:-30], "not a readable zip"),
        "its directory only": (zipped([*EVIL])[-200:], "not a readable"),
        "a directory that begins before the file": (
            struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 1 << 30, 0, 0),
            "not a readable zip",
        ),
        "many names for one picture": (b"", "not a readable zip"),
        "a deep run.json": (zipped([*EVIL, ("run.json", DEEP)]), "not valid JSON"),
        "a picture that is a zip": (
            zipped([("a.png", zipped(EVIL)), *EVIL]),
            "not a readable image",
        ),
    }


def folders():
    return {
        "a picture of 16 gigapixels": (
            {"1.png": png_of(1 << 17, 1 << 17, stream=b"x")},
            "too large to be",
        ),
        "a picture of 100 megapixels": ({"1.png": blank(10_000, 10_000)}, "too large to be"),
        "a picture just beyond what we take": (
            {"1.png": blank(4097, 4096)},
            "too large to be",
        ),
        "large among small ones": ({"9.png": blank(4096, 4096)}, "4096x4096 grey but the first"),
        "cut off": ({"1.png": png(9)[:-30]}, "not a readable image"),
        "pixels that never end": ({"1.png": png_of(3, 4, stream=zlibbed(400 << 20))}, ""),
        "a text of a gigabyte": (
            {"1.png": png_of(3, 4, before=chunk(b"zTXt", b"a\0\0" + zlibbed(400 << 20)))},
            "not a readable image",
        ),
        "a wrong checksum": ({"1.png": png(9).replace(b"IHDR", b"IHDr")}, "not a readable image"),
        "a palette": ({"1.png": png(9, mode="P")}, "has mode P"),
        "with alpha": ({"1.png": png((9, 9, 9, 9), mode="RGBA")}, "has mode RGBA"),
        "16 bits of grey": ({"1.png": png(999, mode="I;16")}, "has mode I;16"),
        "16 bits of colour": (
            {"1.png": png_of(3, 4, 16, 2, zlib.compress(bytes(4 * 19)))},
            "RGB of 16 bits",
        ),
        "an animation": ({"1.png": animated()}, "L, animated"),
        "a program that draws": ({"1.png": EPS}, "not a readable image"),
        "another format": ({"1.png": png(9, format="bmp")}, "not a readable image"),
        "a JPEG file of ten thousand passes": ({"1.jpg": scans(10_000)}, "not a readable image"),
        "a deep run.json": ({"run.json": DEEP.encode()}, "not valid JSON"),
        "a run.json of NaN": ({"run.json": b'{"settings": {"w": NaN}}'}, "not valid JSON"),
        "a run.json of infinity": ({"run.json": b'{"settings": {"w": 1e999}}'}, "not valid JSON"),
        "a run.json of long numbers": (
            {"run.json": f'{{"seeds": {HUGE}}}'.encode()},
            "not valid JSON",
        ),
        "a run.json that is a list": ({"run.json": b"[]"}, "JSON object"),
        "a deep dataset.json": ({"dataset.json": DEEP.encode()}, "not EDM's dataset.json"),
        "an infinite class": (
            {"dataset.json": b'{"labels": [["a", 1e999]]}'},
            "not EDM's dataset.json",
        ),
        "classes of another kind": (
            {"dataset.json": b'{"labels": [[[], {}]]}'},
            "not EDM's dataset",
        ),
    }


def run_with(**changes):
    """A run's folder whose run.json says something else."""
    files = run_folder("png")
    record = json.loads(files["run/run.json"]) | changes
    return files | {"run/run.json": json.dumps(record).encode()}


def run_line(old, new, kind="png"):
    """A run's folder whose manifest says something else."""
    files = run_folder(kind)
    data = files["run/manifest.jsonl"].replace(old, new, 1)
    assert data != files["run/manifest.jsonl"]
    return files | {"run/manifest.jsonl": data}


NOT_A_RUN = "not the metadata of a run"
LACKS = "no folder holds the images"


def runs():
    return {
        "a deep record": (run_folder("png") | {"run/run.json": DEEP.encode()}, NOT_A_RUN),
        "a record that is a text": (run_folder("png") | {"run/run.json": b'"a"'}, NOT_A_RUN),
        "a network that is a list": (run_with(network=["a"]), NOT_A_RUN),
        "a network without a hash": (run_with(network={"sha256": 5}), NOT_A_RUN),
        "a batch that is a list": (run_with(batch=[4]), NOT_A_RUN),
        "seeds beyond number": (run_with(seeds=f"0-{HUGE}"), NOT_A_RUN),
        "seeds by the billion": (run_with(seeds="0-9999999999"), NOT_A_RUN),
        "settings that are none": (run_with(settings=5), NOT_A_RUN),
        "numbers that are none": (run_folder("png") | {"run/run.json": b'{"a": NaN}'}, NOT_A_RUN),
        "another format": (run_with(settings={"format": ["png"], "subdirs": 0}), "the format"),
        "a name that climbs": (run_line(b'"000001.png"', b'"../../canary"'), ""),
        "an absolute name": (run_line(b'"000001.png"', b'"/etc/passwd"'), ""),
        "a seed without an end": (run_line(b'"seed": 1', b'"seed": ' + HUGE.encode()), LACKS),
        "a number that is none": (run_line(b'"nfe": 5.0', b'"nfe": 5e+-.'), LACKS),
        "a number beyond all": (run_line(b'"nfe": 5.0', b'"nfe": 5e999'), LACKS),
        "a place in a file that is not there": (
            run_line(b"}\n", b', "at": 99999999999999, "bytes": 99}\n'),
            LACKS,
        ),
        "a deep line": (run_folder("png") | {"run/manifest.jsonl": DEEP.encode()}, LACKS),
        "a picture of gigapixels": (
            run_folder("png") | {"run/000001.png": png_of(1 << 17, 1 << 17)},
            "is damaged",
        ),
        "a bomb in the zip": (
            run_folder("zip") | {"run/images.zip": bomb(*PICTURES)},
            "is damaged",
        ),
        "no zip": (run_folder("zip") | {"run/images.zip": b"PK"}, "is damaged"),
        "rows of a gigabyte": (
            run_folder("npz") | {"run/images.npz": npz_of(arr_0=npy((3, 1 << 20, 1 << 10, 1)))},
            "is damaged",
        ),
        "rows of another type": (
            run_folder("npz") | {"run/images.npz": npz(arr_0=np.zeros((3, 4, 3, 1)))},
            "is damaged",
        ),
    }


TEXT = json.dumps(TABLE)  # JSON is YAML


def yamls():
    return {
        "an object of Python": (
            TEXT.replace('"A table"', "!!python/object/apply:os.system [touch canary]"),
            "one value",
        ),
        "a name of Python": (
            TEXT.replace('"A table"', "!!python/name:os.system ''"),
            "not readable",
        ),
        "a module of Python": (TEXT.replace('"low"', "!!python/module:os ''"), "not readable"),
        "laughs": (
            "a: &a [x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
                for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            ),
            "unknown key|missing",
        ),
        "laughs in a field": (
            f"x: &a {json.dumps(['x'] * 9)}\n"
            + TEXT[1:-1].replace('["one", "two"]', "[*a, *a, *a]"),
            "unknown key|not readable",
        ),
        "itself": ("title: &a [*a]\nkind: sampled\npaper: *a\n", "one value"),
        "deep": (DEEP[:20_000], "nested too deeply"),
        "deep maps": ("{a: " * 10_000, "nested too deeply"),
        "a megabyte": (TEXT + " " * (1 << 20), "larger than any table"),
        "a number without an end": (TEXT.replace("100", HUGE), "too long"),
        "a number in base 60 without an end": (TEXT.replace("100", "1" + ":59" * 5000), "too long"),
        "a number of digits that are none": (TEXT.replace("100", "0x_"), "not readable"),
        "infinity": (TEXT.replace("2.5", ".inf"), "must be a number"),
        "a number beyond floats": (TEXT.replace("2.5", "1" * 400), "too long"),
        "a key that is a list": ("[a, b]: c\n", "a name must stand here"),
        "a key that is there twice": ("title: a\ntitle: b\n", "there twice"),
        "no text": (b"\xff\xfe\x00", "not UTF-8"),
        "characters that are none": ("title: \x00\x07\n", "not readable YAML"),
        "nothing": ("", "a mapping"),
    }


def stored_features():
    made = {
        "without its images": ({"features": np.ones((3, 4), np.float32)}, "are missing"),
        "rows of others": ({"kept": np.arange(3), "features": np.ones((2, 4))}, "are missing"),
        "images that are numbers": ({"kept": np.ones(3)}, "are missing"),
        "images that are one": ({"kept": np.array(3)}, "are missing"),
    }
    written = {name: (save(content), says) for name, (content, says) in made.items()}
    return written | {"cut off": (features()[:-9], "are missing")}


def labels():
    return {
        "a seed without an end": (f"{HUGE} 1\n".encode(), "is not 'SEED CLASS'"),
        "a class without an end": (f"1 {HUGE}\n".encode(), "is not 'SEED CLASS'"),
        "no numbers": (b"one two\n", "is not 'SEED CLASS'"),
        "below zero": (b"-1 -2\n", "is not 'SEED CLASS'"),
        "no text": (b"\xff\xfe\x00\x01", "is not 'SEED CLASS'"),
        "one long line": (b"1 " * 100_000, "is not 'SEED CLASS'"),
        "classes that are not there": (b"0 999999999999999999\n1 1\n2 2\n", "class"),
    }


def torch_pickle(body, name="data.pkl", packing=zipfile.ZIP_STORED, more=()):
    """A file of torch.save whose pickle is `body`; the member's name, other members behind it."""
    with zipfile.ZipFile(io.BytesIO(state_dict())) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place, _ = members[0]
    described = whole(body).replace(b"\x80\x04", b"\x80\x02")
    first = (place.replace("data.pkl", name), described)
    return zipped([first, *members[1:], *more], packing)


GIGABYTES = call("builtins.bytearray", const(20 << 30))
LONG = b"X" + struct.pack("<I", 67 << 20) + b"x" * (67 << 20)  # a text


def weights():
    seen = r"cannot be read \(ValueError\)"  # before torch reads it
    return {
        "os.system": (torch_pickle(call("os.system", SHELL)), "cannot be read"),
        "eval": (torch_pickle(call("builtins.eval", PYTHON)), "cannot be read"),
        "a bytearray of gigabytes": (torch_pickle(GIGABYTES), seen),
        "a text copied": (
            torch_pickle(call("_codecs.encode", const("a" * 10**6), const("latin1")) * 9),
            seen,
        ),
        "the same under a name in capitals": (torch_pickle(GIGABYTES, "data.PKL"), seen),
        "the same beside a harmless one": (
            torch_pickle(b"}", "data.pk", more=[("archive/DATA.PKL", whole(GIGABYTES))]),
            seen,
        ),
        "the same packed": (torch_pickle(GIGABYTES, packing=zipfile.ZIP_DEFLATED), seen),
        "an old file of a bytearray": (whole(GIGABYTES), seen),
        "an old file that ends as a zip": (whole(GIGABYTES) + zipped([("a", b"")]), seen),
        "an old file of 67 MB": (whole(b"(" + LONG + GIGABYTES + b"t"), seen),
        "a bomb": (bomb("a/data.pkl", "a/data/0", "a/version"), seen),
        "a zip behind a zip": (torch_pickle(GIGABYTES) + torch_pickle(b"}"), seen),
        "no state dict": (torch_pickle(b"]"), "no state dict"),
        "another shape": (torch_pickle(b"}"), "has no tensor"),
    }


MADE = {
    "network pickle": lambda: {
        name: ({"net.pkl": data}, says) for name, (data, says) in pickles().items()
    },
    "network safetensors": lambda: {
        name: (data if isinstance(data, dict) else described(card(data, sha256=None), data), says)
        for name, (data, says) in safetensors().items()
    },
    "images npz": lambda: {
        name: ({"images.npz": data}, says) for name, (data, says) in arrays().items()
    },
    "plain npz": lambda: {
        name: ({"ref.npz": data.replace(b"arr_0", b"sigma")}, "ref.npz")
        for name, (data, _) in arrays().items()
    },
    "images zip": lambda: {
        name: ({"images.zip": data}, says) for name, (data, says) in zips().items()
    },
    "images folder": lambda: {
        name: (images_folder() | files, says) for name, (files, says) in folders().items()
    },
    "run folder": runs,
    "yaml": lambda: {
        name: ({"table.yaml": text if isinstance(text, bytes) else text.encode()}, says)
        for name, (text, says) in yamls().items()
    },
    "features": lambda: {
        name: ({STORED: data}, says) for name, (data, says) in stored_features().items()
    },
    "labels": lambda: {
        name: ({"labels.txt": data}, says) for name, (data, says) in labels().items()
    },
    "weights": lambda: {name: ({"w.pt": data}, says) for name, (data, says) in weights().items()},
}
"""Format -> {what it tries: (files, what must be said)}."""


def cases(kind: str) -> list[Case]:
    """All hostile files of a format."""
    return [Case(name, kind, files, says) for name, (files, says) in MADE[kind]().items()]


SURVIVED = (  # of these nothing is wrong once nobody trusts a name or reads more than he needs
    "a name that climbs",
    "an absolute name",
    "pixels that never end",
    "names that climb",
)
