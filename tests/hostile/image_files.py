"""Hostile images: npz, zip and PNG files, and the folders of runs."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
from hostile.builders import (
    CANARY,
    DEEP,
    HUGE,
    again_named,
    bomb,
    chunk,
    deflated,
    lying_zip,
    npy,
    npy_text,
    npz_of,
    png_of,
    zlibbed,
)
from hostile.formats import IMAGES, npz, png, run_folder, zipped
from PIL import Image


def blank(width, height):
    """Build a grey PNG of zeros, a thousand times smaller than its pixels."""
    return png_of(width, height, stream=zlibbed(height * (width + 1)))


def animated():
    file = io.BytesIO()
    frames = [Image.new("L", (3, 4), shade) for shade in (0, 90)]
    frames[0].save(file, "png", save_all=True, append_images=frames[1:])
    return file.getvalue()


def scans(count):
    """Build a progressive JPEG file of ``count`` scans."""
    data = png((9, 9, 9), (64, 64), "RGB", format="jpeg", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    return data[:first] + data[first:second] * count + data[second:]


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 4\n%%EndComments\n"
    b"(canary) (w) file closefile showpage\n%%EOF\n"
)


PIXELS = bytes(12)


def arrays():
    return {
        "objects": (npz(arr_0=np.array([None, None])), "Object arrays are refused"),
        "an array of an exbibyte": (npz_of(arr_0=npy((1 << 30, 1 << 30, 1, 1))), "not match its b"),
        "images without pixels": (npz_of(arr_0=npy((10**9, 0, 4, 1))), "not match its bytes"),
        "few images without pixels": (npz_of(arr_0=npy((3, 0, 4, 1))), "must be uint8"),
        "a shape below zero": (npz_of(arr_0=npy((-3, -4, 1, 1), data=PIXELS)), "not match its b"),
        "fewer bytes than its shape": (
            npz_of(arr_0=npy((3, 4, 3, 1), data=PIXELS)),
            "not match its bytes",
        ),
        "another type": (npz_of(arr_0=npy((3, 4, 1, 1), "<f4", PIXELS * 4)), "must be uint8"),
        "another shape": (npz_of(arr_0=npy((3, 4), data=PIXELS)), "must be uint8"),
        "texts of a gigabyte": (npz_of(arr_0=npy((1,), "<U1000000000")), "a malformed header"),
        "a type of records": (npz_of(arr_0=npy((1,), [("a", "<f8", (10**9,))])), "malformed h"),
        "a deep header": (npz_of(arr_0=npy_text("(" * 9000)), "a malformed header"),
        "a header that is code": (
            npz_of(arr_0=npy_text(f"{{'descr': open('{CANARY}', 'w')}}")),
            "a malformed header",
        ),
        "a header of odd keys": (
            npz_of(arr_0=npy_text("{1: 2, 'a': 3, (): 4}")),
            "a malformed header",
        ),
        "an unbounded header": (
            npz_of(arr_0=b"\x93NUMPY\x02\x00\xff\xff\xff\xff"),
            "a malformed header",
        ),
        "a bomb": (bomb("arr_0.npy"), "grows from [0-9]+ to"),
        "a bomb with a false size": (
            lying_zip((b"arr_0.npy", deflated(400 << 20), 1000)),
            "damaged",
        ),
        "labels without values": (
            npz_of(arr_0=npy((3, 4, 1, 1), data=PIXELS), labels=npy((3, 10**9, 0))),
            "not match its bytes",
        ),
        "not a zip": (b"PK\x03\x04" + bytes(99), "not a readable npz"),
    }


SOUND = [*IMAGES.items()]


def zips():
    return {
        "names that climb": (
            zipped([("../../canary.png", b"x"), ("..\\canary.png", b"x"), *SOUND]),
            "not a readable im",
        ),
        "absolute names": (zipped([("/canary.png", b"x"), *SOUND]), "not a readable image"),
        "a link": (zipped([("000009.png", b"/etc/passwd"), *SOUND]), "not a readable image"),
        "a duplicate name": (zipped([*SOUND, SOUND[0]]), "holds 000000.png twice"),
        "a name of two lines": (
            zipped([("a\n\x1b[2Jb.png", b"x"), *SOUND]),
            "not a readable image",
        ),
        "a name that is an unbounded number": (
            zipped([(f"{HUGE[:500]}.png", b"x"), *SOUND]),
            "not a readable image",
        ),
        "bombs": (bomb("0.png", "1.png"), "too large to be"),
        "bombs with a false size": (
            lying_zip(*((name, deflated(400 << 20), 1000) for name in (b"0.png", b"1.png"))),
            "not a readable image",
        ),
        "bombs of bzip2": (
            zipped([("0.png", bytes(1 << 20)), ("1.png", b"x")], zipfile.ZIP_BZIP2),
            "neither stored nor deflated",
        ),
        "a bomb as run.json": (bomb("0.png", "1.png", "run.json"), "too large to be"),
        "a bomb as dataset.json": (bomb("0.png", "1.png", "dataset.json"), "too large to be"),
        "a stored run.json of many lists": (  # H9
            zipped([*SOUND, ("run.json", b'{"a":[' + b"[]," * 3_000_000 + b"1]}")]),
            "run.json cannot be read",
        ),
        "an encrypted member": (
            zipped([*SOUND]).replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
            ),
            "neither stored nor deflated",
        ),
        "cut off": (zipped([*SOUND])[:-30], "not a readable zip"),
        "only its directory": (zipped([*SOUND])[-200:], "not a readable"),
        "a directory that begins before the file": (
            struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 1 << 30, 0, 0),
            "not a readable zip",
        ),
        "nothing": (b"", "not a readable zip"),
        "two names for one image": (  # H5
            again_named(zipped(SOUND), b"000002.png", b"000009.png"),
            "000002.png in it overlaps|000009.png in it overlaps",
        ),
        "a deep run.json": (zipped([*SOUND, ("run.json", DEEP)]), "run.json cannot be read"),
        "an image that is a zip": (
            zipped([("a.png", zipped(SOUND)), *SOUND]),
            "not a readable image",
        ),
    }


def folders():
    return {
        "an image of 16 gigapixels": (
            {"1.png": png_of(1 << 17, 1 << 17, stream=b"x")},
            "too large to be",
        ),
        "an image of 100 megapixels": ({"1.png": blank(10_000, 10_000)}, "too large to be"),
        "an image just above the limit": (
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
        "a PostScript program": ({"1.png": EPS}, "not a readable image"),
        "another format": ({"1.png": png(9, format="bmp")}, "is a BMP file"),
        "a JPEG file of ten thousand passes": ({"1.png": scans(10_000)}, "more than 100 scans"),
        "a deep run.json": ({"run.json": DEEP.encode()}, "run.json cannot be read"),
        "a run.json of NaN": ({"run.json": b'{"settings": {"w": NaN}}'}, "run.json cannot be read"),
        "a run.json of infinity": (
            {"run.json": b'{"settings": {"w": 1e999}}'},
            "run.json cannot be read",
        ),
        "a run.json of long numbers": (
            {"run.json": f'{{"seeds": {HUGE}}}'.encode()},
            "run.json cannot be read",
        ),
        "a run.json that is a list": ({"run.json": b"[]"}, "not that of a run"),
        "a deep dataset.json": ({"dataset.json": DEEP.encode()}, "dataset.json cannot be read"),
        "an infinite class": (
            {"dataset.json": b'{"labels": [["a", 1e999]]}'},
            "dataset.json cannot be read",
        ),
        "classes of another kind": (
            {"dataset.json": b'{"labels": [[[], {}]]}'},
            "gives no classes",
        ),
    }


def run_with(**changes):
    """Change values of a run folder's run.json."""
    files = run_folder("png")
    record = json.loads(files["run/run.json"]) | changes
    return files | {"run/run.json": json.dumps(record).encode()}


def run_line(old, new, kind="png"):
    """Replace bytes in a run folder's manifest."""
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
        "settings that are a number": (run_with(settings=5), NOT_A_RUN),
        "NaN in run.json": (run_folder("png") | {"run/run.json": b'{"a": NaN}'}, NOT_A_RUN),
        "another format": (run_with(settings={"format": ["png"], "subdirs": 0}), "the format"),
        "a name that climbs": (run_line(b'"000001.png"', b'"../../canary"'), ""),
        "an absolute name": (run_line(b'"000001.png"', b'"/etc/passwd"'), ""),
        "an unbounded seed": (run_line(b'"seed": 1', b'"seed": ' + HUGE.encode()), LACKS),
        "a malformed number": (run_line(b'"nfe": 5.0', b'"nfe": 5e+-.'), LACKS),
        "a number beyond floats": (run_line(b'"nfe": 5.0', b'"nfe": 5e999'), LACKS),
        "an offset beyond the file": (
            run_line(b"}\n", b', "at": 99999999999999, "bytes": 99}\n'),
            LACKS,
        ),
        "an unbounded row": (run_line(b'"arr_0[1]"', b'"arr_0[%b]"' % HUGE.encode(), "npz"), ""),
        "a deep line": (run_folder("png") | {"run/manifest.jsonl": DEEP.encode()}, LACKS),
        "an image of gigapixels": (
            run_folder("png") | {"run/000001.png": png_of(1 << 17, 1 << 17)},
            "are damaged",
        ),
        "a bomb in the zip": (
            run_folder("zip") | {"run/images.zip": bomb(*IMAGES)},
            "is damaged",
        ),
        "no zip": (run_folder("zip") | {"run/images.zip": b"PK"}, "is damaged"),
        "rows of a gigabyte": (
            run_folder("npz") | {"run/images.npz": npz_of(arr_0=npy((3, 1 << 20, 1 << 10, 1)))},
            "is damaged",
        ),
        "rows that are compressed": (  # M26: reading them in another order took quadratic time
            run_folder("npz")
            | {"run/images.npz": npz(True, arr_0=np.zeros((3, 4, 3, 1), np.uint8),
                                     seeds=np.arange(3)[::-1])},
            "is damaged",
        ),
        "rows of another type": (
            run_folder("npz") | {"run/images.npz": npz(arr_0=np.zeros((3, 4, 3, 1)))},
            "is damaged",
        ),
    }
