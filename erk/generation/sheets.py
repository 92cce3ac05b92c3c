"""Sheets of captioned images, for animations, comparisons and nearest neighbours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
MIN_SIDE, MAX_SIDE = 128, 256  # pixels of an image's longer side on a sheet
LINE = 15  # pixels of a line of text, with the space between lines
GAP = 4


class SheetCell(NamedTuple):
    """An image and the caption below it."""

    image: Array  # uint8 [C, H, W], C = 1 or 3
    caption: str = ""


def captioned_sheet(
    columns: Sequence[Sequence[SheetCell]], names: Sequence[str], title: str = "", per_line: int = 8
) -> Array:
    """Arrange columns of images on a sheet, uint8 [3, H, W].

    Small images are enlarged and large ones shrunk by integer factors.

    Parameters
    ----------
    columns : sequence of columns
        Each has one cell per name; all images have one size.
    names : sequence of str
        The names of the rows, at the left.
    title : str
        At the top.
    per_line : int
        Columns side by side; further ones start a new line.

    Raises
    ------
    ValueError
        If images differ in size or columns in length.
    """
    cells = [[cell._replace(image=fitted(cell.image)) for cell in column] for column in columns]
    sizes = {cell.image.shape for column in cells for cell in column}
    if len(sizes) != 1 or {len(column) for column in cells} != {len(names)}:
        raise ValueError("all images of a sheet must have one size and all columns one length.")
    _, h, w = sizes.pop()
    left = GAP + max((_width(name) for name in names), default=0) + GAP
    step, rise = w + GAP, h + LINE + GAP
    top = LINE + 2 * GAP if title else GAP
    lines = -(-len(cells) // per_line)
    line_height = rise * len(names) + GAP
    wide = left + step * min(per_line, len(cells))
    wide = max(wide, _width(title) + 2 * GAP)
    page = np.full((3, top + lines * line_height, wide), 255, np.uint8)
    texts = [(GAP, GAP, title)]
    for i, column in enumerate(cells):
        x, y = left + i % per_line * step, top + i // per_line * line_height
        for row, (name, cell) in enumerate(zip(names, column, strict=True)):
            at = y + row * rise
            page[:, at : at + h, x : x + w] = cell.image
            texts.append((x, at + h, cell.caption))
            if i % per_line == 0:
                texts.append((GAP, at + h // 2 - LINE // 2, name))
    return _lettered(page, texts)


def grid(images: Sequence[Array], captions: Sequence[str]) -> Array:
    """Arrange images uint8 [C, H, W] about square, each above its caption, uint8 [3, H', W']."""
    columns = [[SheetCell(*one)] for one in zip(images, captions, strict=True)]
    return captioned_sheet(columns, [""], per_line=math.isqrt(len(columns) - 1) + 1)


def caption(seed: int, of_class: int | None) -> str:
    """Name a seed, and its class where it is known."""
    return f"seed {seed}" if of_class is None else f"{seed}: class {of_class}"


def fitted(image: Array) -> Array:
    """Convert an image to colour, uint8 [3, H', W'], with a longer side of about 128 to 256.

    Pixels are repeated to enlarge, averaged to shrink.
    """
    colour = image.repeat(3, axis=0) if len(image) == 1 else image
    longer = max(colour.shape[1:])
    if longer < MIN_SIDE:
        scale = MIN_SIDE // longer
        return colour.repeat(scale, axis=1).repeat(scale, axis=2)
    factor = -(-longer // MAX_SIDE)
    if factor == 1:
        return colour
    h, w = colour.shape[1] // factor, colour.shape[2] // factor
    blocks = colour[:, : h * factor, : w * factor].reshape(3, h, factor, w, factor)
    return (blocks.astype(np.float32).mean((2, 4)) + 0.5).astype(np.uint8)


def _lettered(page: Array, texts: Sequence[tuple[int, int, str]]) -> Array:
    """Write black text at (x, y) on the page [3, H, W]."""
    image = Image.fromarray(np.ascontiguousarray(page.transpose(1, 2, 0)))
    draw = ImageDraw.Draw(image)
    for x, y, text in texts:
        draw.text((x, y), text, fill=(0, 0, 0), font=_font())
    return np.asarray(image).transpose(2, 0, 1)


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(LINE - 2)  # Pillow's font: the same letters everywhere
