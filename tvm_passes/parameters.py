"""The parameters that a mask adds to a compiled function: what the passes make of it and its callers give it.

For each masked layer, of a mask [O, …] with n values, in this order:

    mask/<layer>/bits         uint8 [⌈n/8⌉]             the binary mask, first value in the highest bit
    mask/<layer>/scale        float32 or uint8 [zeros]  numbers q where the bit is 0, in order; at least 8
    mask/<layer>/row_start    int32 [O]                 zeros before each output channel
    mask/<layer>/scale_range  float32 [2]               (low, step): the soft value is low + q·step

Nothing here imports TVM, so that whoever only calls compiled functions can import it too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

MaskPart = Literal["bits", "scale", "row_start", "scale_range"]

FEWEST_SOFT_VALUES = 8  # What the compiled functions read of `scale` at once; zeros stand behind fewer.


@dataclass(frozen=True)
class Parameter:
    """A parameter's name and type; an extent of the shape may be a variable of the compiler's."""

    name: str
    shape: tuple[Any, ...]
    dtype: str


def mask_parameters(layer: str, shape: Sequence[int], coded: bool, soft_values: Any) -> list[Parameter]:
    """The parameters of the mask of a layer.

    Args:
        layer: path in the network.
        shape: of the mask.
        coded: whether its soft values are codes, uint8; else they are float32.
        soft_values: how many there are: a number, or a variable of the compiler's.
    """
    types: dict[MaskPart, tuple[tuple[Any, ...], str]] = {
        "bits": ((-(-math.prod(shape) // 8),), "uint8"),
        "scale": ((soft_values,), "uint8" if coded else "float32"),
        "row_start": ((shape[0],), "int32"),
        "scale_range": ((2,), "float32"),
    }
    return [Parameter(f"mask/{layer}/{part}", *type_) for part, type_ in types.items()]


def mask_part_of(name: str) -> tuple[str, MaskPart] | None:
    """The layer and the part of its mask that a parameter's name says; None for a parameter of no mask."""
    if not name.startswith("mask/"):
        return None
    _, layer, part = name.split("/")
    if part not in get_args(MaskPart):
        raise ValueError(f"a mask has no part '{part}', as {name} says")
    return layer, cast(MaskPart, part)
