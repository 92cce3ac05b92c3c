"""The size of images, which must agree wherever images are compared."""

from collections.abc import Mapping
from typing import TypeAlias

Size: TypeAlias = tuple[int, int]
"""Height and width of images, pixels."""


def check_same_size(sizes: Mapping[str, Size | None]) -> None:
    """Raise ValueError if images that are compared differ in size; None: it is not known."""
    known = [(name, size) for name, size in sizes.items() if size is not None]
    for name, (height, width) in known[1:]:
        first, size = known[0]
        if size != (height, width):
            raise ValueError(
                f"{first} holds images of {size[1]}x{size[0]} pixels but {name} of "
                f"{width}x{height}: their numbers would not compare, so resize one, once"
            )
