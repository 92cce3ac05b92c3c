"""The shape of an image by its header is that of its pixels, or unknown."""

import numpy as np
import pytest
from PIL import Image

from erk.io.untrusted import decode_image, header_shape

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {}), ("jpg", {"progressive": True}), ("jpg", {"exif": b"Exif\0\0" * 99})],
)
def test_the_header_gives_the_shape(tmp_path, mode, suffix, options):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS[..., :3]).convert(mode).save(path, **options)
    data = path.read_bytes()
    shape = decode_image(data).shape
    assert header_shape(path) == shape == (20, 30, len(mode))
    for length in range(len(data)):  # as an interrupted copy leaves it
        path.write_bytes(data[:length])
        assert header_shape(path) in (None, shape)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_other_kinds_of_png_have_none(tmp_path, mode):
    wide = Image.fromarray(PIXELS[..., 0].astype(np.uint16))
    image = wide if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "a.png")
    assert header_shape(tmp_path / "a.png") is None


def test_damaged_and_other_files_have_none(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS[..., :4], "CMYK").save(path)
    assert header_shape(path) is None
    for data in (b"", b"junk" * 99, b"\xff\xd8", b"\xff\xd8" + b"\xff\xe0\0\2" * 9999):
        path.write_bytes(data)
        assert header_shape(path) is None
    Image.fromarray(PIXELS[..., :3]).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[19] ^= 1  # the width: a wrong checksum, not another width
    path.write_bytes(data)
    assert header_shape(path) is None
