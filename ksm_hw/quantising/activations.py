"""Activation functions that int8 looks up in tables: in float64, by operations that every CPU rounds alike.

`exp` of a CPU's library differs from that of another in its last bit, and so might a table.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

ActivationName = Literal["hardsigmoid", "hardswish", "sigmoid", "silu"]
Float64Array = npt.NDArray[np.float64]

_FURTHEST = 80.0  # From 0; beyond it a sigmoid is 0 or 1 to any of 8 bits.
_HALVINGS, _TERMS = 10, 10


def activated(function: ActivationName, values: Float64Array) -> Float64Array:
    """A function of each value."""
    match function:
        case "hardsigmoid":
            return np.clip(values + 3, 0, 6) / 6
        case "hardswish":
            return values * activated("hardsigmoid", values)
        case "sigmoid":
            return 1 / (1 + _exponential(-np.clip(values, -_FURTHEST, _FURTHEST)))
        case "silu":
            return values * activated("sigmoid", values)


def _exponential(values: Float64Array) -> Float64Array:
    """e to the power of values: its series near 0, squared as often as they were halved."""
    small = values / 2**_HALVINGS
    result = np.ones_like(small)
    for term in range(_TERMS, 0, -1):
        result = 1 + small / term * result
    for _ in range(_HALVINGS):
        result = result * result
    return result
