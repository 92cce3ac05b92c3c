"""Builders of malformed files: zip bombs, zips and arrays with false headers, PNG chunks."""

import io
import struct
import zipfile
import zlib

import numpy as np
from hostile.formats import zipped

CANARY = "canary"  # the file that every payload would create
DEEP = "[" * 100_000
HUGE = "9" * 5000


def deflated(size):
    """Compress ``size`` zero bytes, a thousand times shorter, without compressing each MiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + packer.flush()


def zlibbed(size):
    return b"\x78\xda" + deflated(size) + bytes(4)


def lying_zip(*members, method=8, flags=0):
    """Build a zip of (name, stream, size) members without checking that they agree."""
    body = central = b""
    for name, stream, size in members:
        fields = struct.pack(
            "<HHHHHIIIHH", 20, flags, method, 0, 0x21, 0, len(stream), size, len(name), 0
        )
        central += (
            b"PK\x01\x02"
            + struct.pack("<H", 20)
            + fields
            + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
            + name
        )
        body += b"PK\x03\x04" + fields + name + stream
    count = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(central), len(body), 0)
    return body + central + end


def again_named(data, name, other):
    """Add a second entry, of another name of that length, for a member of a zip."""
    end = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    at = data.index(name, start) - 46
    length = 46 + sum(struct.unpack("<HHH", data[at + 28 : at + 34]))
    entry = data[at : at + length].replace(name, other)
    last = bytearray(data[end:])
    struct.pack_into("<HHI", last, 8, count + 1, count + 1, size + length)
    return data[:end] + entry + bytes(last)


def bomb(*names, size=400 << 20):
    return lying_zip(*((name.encode(), deflated(size), size) for name in names))


def npy(shape, descr="|u1", data=b"", is_fortran=False):
    """Build an .npy file with this header and these bytes, consistent or not."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": is_fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def npy_text(header):
    """Build an .npy file whose header is this text."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz_of(packing=zipfile.ZIP_STORED, **members):
    return zipped([(f"{name}.npy", data) for name, data in members.items()], packing)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth=8, colour=0, stream=b"", before=b""):
    """Build a PNG file of this size whose compressed pixels are ``stream``."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rest = chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + rest
