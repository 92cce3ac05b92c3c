"""Pictures side by side with words: what films, comparisons and neighbours are drawn with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
SMALLEST, LARGEST = 64, 256  # pixels of a picture's longer side on a sheet
LETTER = 15  # pixels of a line of words, with the space between lines
GAP = 4


class Cell(NamedTuple):
    """A picture and the words below it."""

    image: Array  # uint8 [C, H, W], C = 1 or 3
    caption: str = ""


def captioned_sheet(
    columns: Sequence[Sequence[Cell]], names: Sequence[str], title: str = "", per_line: int = 8
) -> Array:
    """Columns of pictures, each as high as `names`, which stand at the left: uint8 [3, H, W].

    `per_line` columns stand side by side, further ones below. Small pictures are enlarged and large
    ones shrunk by whole factors. All columns and rows must be of one length and size (ValueError).
    """
    cells = [[cell._replace(image=fitted(cell.image)) for cell in column] for column in columns]
    sizes = {cell.image.shape for column in cells for cell in column}
    if len(sizes) != 1 or {len(column) for column in cells} != {len(names)}:
        raise ValueError("a sheet wants pictures of one size and columns of one length.")
    _, h, w = sizes.pop()
    left = GAP + max((_width(name) for name in names), default=0) + GAP
    step, rise = w + GAP, h + LETTER + GAP
    top = LETTER + 2 * GAP if title else GAP
    lines = -(-len(cells) // per_line)
    line_height = rise * len(names) + GAP
    wide = left + step * min(per_line, len(cells))
    wide = max(wide, _width(title) + 2 * GAP)
    page = np.full((3, top + lines * line_height, wide), 255, np.uint8)
    words = [(GAP, GAP, title)]
    for i, column in enumerate(cells):
        x, y = left + i % per_line * step, top + i // per_line * line_height
        for row, (name, cell) in enumerate(zip(names, column, strict=True)):
            at = y + row * rise
            page[:, at : at + h, x : x + w] = cell.image
            words.append((x, at + h, cell.caption))
            if i % per_line == 0:
                words.append((GAP, at + h // 2 - LETTER // 2, name))
    return _lettered(page, words)


def fitted(image: Array) -> Array:
    """The picture in colour, uint8 [3, H', W'], with a longer side of 64 to 256 where it can be.

    Enlarged by repeating pixels, shrunk by averaging them.
    """
    colour = image.repeat(3, axis=0) if len(image) == 1 else image
    longer = max(colour.shape[1:])
    if longer < SMALLEST:
        scale = SMALLEST // longer
        return colour.repeat(scale, axis=1).repeat(scale, axis=2)
    factor = -(-longer // LARGEST)
    if factor == 1:
        return colour
    h, w = colour.shape[1] // factor, colour.shape[2] // factor
    blocks = colour[:, : h * factor, : w * factor].reshape(3, h, factor, w, factor)
    return (blocks.astype(np.float32).mean((2, 4)) + 0.5).astype(np.uint8)


def _lettered(page: Array, words: Sequence[tuple[int, int, str]]) -> Array:
    """The page [3, H, W] with black words at (x, y)."""
    picture = Image.fromarray(np.ascontiguousarray(page.transpose(1, 2, 0)))
    draw = ImageDraw.Draw(picture)
    for x, y, text in words:
        draw.text((x, y), text, fill=(0, 0, 0), font=_font())
    return np.asarray(picture).transpose(2, 0, 1)


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(LETTER - 2)  # Pillow's own: the same letters everywhere
