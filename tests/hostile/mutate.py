"""Seeded mutations of sound files: of their bytes, and of the parts of each format."""

import io
import random
import re
import struct
import warnings
import zipfile
import zlib

from hostile.builders import again_named

INTEGERS = [
    0,
    1,
    -1,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    10**6,
    10**9,
]
WORDS = [
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "0",
    "1e999",
    "NaN",
    "0.5",
    "9" * 30,
    "9" * 5000,
    '""',
    '"a"',
    '"\\ud800"',
    '"../../canary"',
    "[" * 2000,
    '{"a":' * 2000,
    "[[1]]",
    "1e-9",
    '"0-99999999999"',
    "1.5e308",
    "[null, 1]",
    "2",
    "1000000",
    "[1, 0]",
    "1.5",
    '"skip"',
    "Infinity",
]
NAMES = [
    "../../canary.png",
    "/etc/passwd",
    "a" * 300,
    "\n.png",
    "000001.png",
    "run.json",
    "arr_0.npy",
    "mu.npy",
    "format.npy",
    "é.png",
    "data.pkl",
]
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|true|false|null')
TEXTS = (".json", ".jsonl", ".yaml", ".txt")
OPCODES = (
    b"(.012FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b"
    + bytes(range(0x8C, 0x99))
)


def changed(files, seed):
    """Mutate one of the files; the same seed gives the same mutation."""
    rng = random.Random(seed)
    name = rng.choice(sorted(files))
    data = files[name]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _change(rng, name, data)
    return files | {name: data}


def _change(rng, name, data):
    if rng.random() < 0.3:
        return _bytes(rng, data)
    if name.endswith(TEXTS):
        return _text(rng, data)
    if data[:2] == b"PK":
        return _zip(rng, data)
    if data[:4] == b"\x89PNG":
        return _png(rng, data)
    if name.endswith(".safetensors"):
        return _safetensors(rng, data)
    if name.endswith((".pkl", ".pt")):
        return _pickle(rng, data)
    return _npy(rng, data) if data[:6] == b"\x93NUMPY" else _bytes(rng, data)


def _bytes(rng, data):
    """Flip, insert, delete, repeat or overwrite bytes at a random offset."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64, 1000))
    kind = rng.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(length) + data[at:]
    if kind == 2:
        return data[:at] + data[at + length :]
    if kind == 3:
        return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        other = rng.randrange(len(data) + 1)
        return data[:at] + data[other : other + length] + data[at + length :]
    number = _number(rng)
    return data[:at] + number + data[at + len(number) :]


def _number(rng):
    size, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
    number = rng.choice(INTEGERS) % (1 << 8 * size)
    return struct.pack(f"{order}{dict(zip((1, 2, 4, 8), 'BHIQ', strict=True))[size]}", number)


def _text(rng, data):
    """Replace a value, or duplicate or delete a line."""
    values = list(VALUE.finditer(data))
    if not values or rng.random() < 0.1:
        lines = data.splitlines(True)
        rng.shuffle(lines)
        return b"".join(lines[1:] + lines[:3])
    one = rng.choice(values)
    new = rng.choice(WORDS).encode() if rng.random() < 0.7 else rng.choice(values)[0]
    return data[: one.start()] + new + data[one.end() :]


def _zip(rng, data):
    """Mutate, delete, duplicate, recompress or rename a member."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(one.filename, archive.read(one)) for one in archive.infolist()]
    except Exception:
        return _bytes(rng, data)
    if not members:
        return _bytes(rng, data)
    i = rng.randrange(len(members))
    name, content = members[i]
    if rng.random() < 0.1 and data.count(b"PK\x05\x06") == 1 and b"PK\x06\x06" not in data:
        other = bytes(rng.choice(b"abc019") for _ in name.encode())
        try:
            return again_named(data, name.encode(), other)
        except (ValueError, struct.error):  # changed before
            return _bytes(rng, data)
    kind = rng.randrange(8)
    if kind < 4:
        if name.endswith(".npy") and kind < 3:
            content = _npy(rng, content)
        else:
            content = _change(rng, name, content) if content else b"x"
        members[i] = name, content
    elif kind == 4:
        members[i] = rng.choice(NAMES), content
    elif kind == 5:
        members.append((rng.choice((name, rng.choice(NAMES))), content))
    elif kind == 6:
        del members[i]
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED,
                          zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)) if kind == 7 else None  # fmt: skip
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = rng.choice((0, 8)) if packing is None else packing
            archive.writestr(info, content)
    return file.getvalue()


def _npy(rng, data):
    """Mutate an array's header and correct its length."""
    if data[:6] != b"\x93NUMPY":
        return _bytes(rng, data)
    length = int.from_bytes(data[8:10], "little")
    header, rest = data[10 : 10 + length], data[10 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        header = _bytes(rng, header)
    elif kind == 1:
        header = re.sub(
            rb"\d+",
            lambda _: str(rng.choice(INTEGERS)).encode(),
            header,
            count=rng.choice((1, 2, 9)),
        )
    elif kind == 2:
        descr = rng.choice(
            (
                b"'|O'",
                b"'<f4'",
                b"'<U99999'",
                b"'|V0'",
                b"'>i8'",
                b"'<c16'",
                b"'|b1'",
                b"'<M8[s]'",
                b"[('a', '<f8')]",
                b"'|S8'",
                b"'<f2'",
                b"5",
            )
        )
        header = re.sub(rb"'descr': [^,]+", b"'descr': " + descr, header)
    else:
        shape = rng.choice(
            (
                b"()",
                b"(0,)",
                b"(-1,)",
                b"(3, 0, 4, 1)",
                b"(1, 36)",
                b"(36,)",
                b"(1000000000000, 0)",
                b"(9, 4)",
                b"(True,)",
                b"(2.0,)",
            )
        )
        header = re.sub(rb"\([^)]*\)", shape, header)
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + rest


def _png(rng, data):
    """Mutate a chunk and correct its checksum, or repeat it."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return _bytes(rng, data)
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    if rng.random() < 0.2:
        chunks.insert(i, rng.choice(chunks))
    elif kind == b"IDAT" and rng.random() < 0.5:
        chunks[i] = kind, zlib.compress(rng.randbytes(rng.choice((0, 9, 99, 10**5))))
    elif rng.random() < 0.2:
        chunks[i] = (
            rng.choice((b"tRNS", b"acTL", b"fcTL", b"zTXt", b"iCCP", b"PLTE", b"eXIf")),
            content,
        )
    else:
        chunks[i] = kind, _bytes(rng, content or b"x")
    chunks = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return data[:8] + b"".join(chunks)


def _safetensors(rng, data):
    """Mutate the header and correct its length."""
    length = int.from_bytes(data[:8], "little")
    header = _text(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _pickle(rng, data):
    """Replace an opcode, or a small number before one."""
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at] + bytes([rng.choice(OPCODES)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([rng.choice(OPCODES)]) + data[at:]
    owners = [m.start() for m in re.finditer(rb"[cXBKMJqrhj\x8c\x94]", data)]
    at = rng.choice(owners) if owners else at
    if kind == 2:
        end = at + rng.choice((1, 2, 5, 6))
        return data[:at] + data[end:]
    number = _number(rng)
    return data[: at + 1] + number + data[at + 1 + len(number) :]
