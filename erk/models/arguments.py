"""Arguments of networks and encoders: their types and ranges, and one schema per class.

The signature of a constructor declares each argument once. A schema collects the signatures of the
constructors to which a class passes its arguments on; files are validated by it before anything is
built.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

MAX_SIZE = 1 << 20  # channels, classes, levels
MAX_RESOLUTION = 4096  # pixels or latent values per row
MAX_IMAGE_MEMORY = 8 << 30  # bytes that the activations of one image may take

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Resolution = Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0)]  # infinity: none
Share = Annotated[float, Field(ge=0, le=1)]
Multipliers = Annotated[Sequence[Size], Field(min_length=1, max_length=16)]
Resolutions = Annotated[Sequence[Count], Field(max_length=64)]
Filter = Annotated[Sequence[Number], Field(min_length=1, max_length=64)]
PerChannel = Number | Annotated[Sequence[Number], Field(min_length=1, max_length=64)]
PositivePerChannel = Positive | Annotated[Sequence[Positive], Field(min_length=1, max_length=64)]

Constructors = tuple[Callable[..., Any], ...]
"""A class, and the classes that it passes further arguments to."""

INTERNAL = ("in_channels", "out_channels", "emb_channels", "flavor", "resample_mode", "attention",
            "offline")  # fmt: skip
"""Parameters that our constructors pass to each other; no file has them."""


@functools.cache
def schema_of(constructors: Constructors) -> type[BaseModel]:
    """Return the schema of the arguments of a class and of the classes that it passes them to."""
    fields: Any = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty
               else parameter.default)
        for constructor in reversed(constructors)
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in INTERNAL
    }  # fmt: skip
    strict = ConfigDict(strict=True, extra="forbid", protected_namespaces=())
    return create_model(constructors[0].__name__, __config__=strict, **fields)


def defaults_of(constructors: Constructors) -> dict[str, Any]:
    """Return the arguments of a schema with their defaults, `...` for those that have none."""
    fields = schema_of(constructors).model_fields
    return {name: ... if one.is_required() else one.default for name, one in fields.items()}


def check_levels(
    img_resolution: int, widths: Sequence[int], num_blocks: int, resample_filter: Sequence[float]
) -> int:
    """Return the bytes that the float32 activations of one image take at least.

    `widths` are the channels of the levels, each half as large as the one above. Raises ValueError
    for levels that no image passes, or whose activations take too much memory.
    """
    if img_resolution % (1 << (len(widths) - 1)):
        raise ValueError(
            f"img_resolution {img_resolution} cannot be halved {len(widths) - 1} times, as "
            "channel_mult requires"
        )
    if sum(resample_filter) == 0 or (len(widths) > 1 and len(resample_filter) % 2):
        raise ValueError("resample_filter must have an even number of values, whose sum is not 0")
    values = [(img_resolution >> level) ** 2 * width for level, width in enumerate(widths)]
    needed = 4 * ((num_blocks + 1) * sum(values) + 6 * max(values))  # skips and one block
    if needed > MAX_IMAGE_MEMORY:
        raise ValueError(
            f"one image takes {needed / 1e9:.3g} GB of activations, more than "
            f"{MAX_IMAGE_MEMORY / 1e9:.3g} GB"
        )
    return needed
