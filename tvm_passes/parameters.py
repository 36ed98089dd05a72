"""The parameters that each mask adds to a function, through Relax and Relay alike. Nothing here imports TVM.

Of a mask [O, …] with n values, in this order:

    mask/<layer>/bits         uint8 [⌈n/8⌉]             the binary mask, first value in the highest bit
    mask/<layer>/scale        float32 or uint8 [zeros]  numbers q where the bit is 0, in order; at least 8
    mask/<layer>/row_start    int32 [O]                 zeros before each output channel
    mask/<layer>/scale_range  float32 [2]               (low, step): the soft value is low + q·step

Whoever runs compiled functions needs no compiler, and so states what it gives them by itself; tests compare the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
    return [
        Parameter(f"mask/{layer}/bits", (-(-math.prod(shape) // 8),), "uint8"),
        Parameter(f"mask/{layer}/scale", (soft_values,), "uint8" if coded else "float32"),
        Parameter(f"mask/{layer}/row_start", (shape[0],), "int32"),
        Parameter(f"mask/{layer}/scale_range", (2,), "float32"),
    ]
