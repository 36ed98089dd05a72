"""The arithmetic of int8, stated in `docs/quantisation.md`: NumPy alone, one rounding for each value.

Real values are `scale · (q - zero_point)`. Ties round to even everywhere. In float32 nothing is added to a product
before that is rounded to an integer, so a compiler that contracts to fused multiply-adds changes no bit.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.quantising.activations import ActivationName, activated

Float32Array = npt.NDArray[np.float32]

LARGEST = 255  # Of a quantised activation, uint8.
LARGEST_WEIGHT = 127  # Weights are symmetric: -128 is never used.
LARGEST_BIAS = 2**30  # A bias and as much again of products fit 32 bits.
MOST_PRODUCTS = (2**31 - 1 - LARGEST_BIAS) // (LARGEST * LARGEST_WEIGHT)  # Of a sum, beside the largest bias.
MOST_PIXELS = (2**31 - 1) // LARGEST  # Of a mean.
MOST_VALUES = 2**30  # Of a tensor: kernels count in 32 bits, and may put padding around it.
SMALLEST_WEIGHT_SCALE = 2.0**-60  # A channel whose scale would be smaller is one of zeros.
NARROWEST, WIDEST = 2.0**-50, 2.0**50  # Of a range; beyond them float32 does not hold scales and their products.
ADDITION_STEPS = 2**16  # An operand of an addition is multiplied by at most this, so two of them fit 32 bits.


@dataclass(frozen=True)
class Quantisation:
    """How the values of one tensor are quantised.

    Attributes:
        scale: what one step means, a number that float32 holds; above 0.
        zero_point: what 0.0 is, 0…255.
    """

    scale: float
    zero_point: int


def is_range(low: float, high: float) -> bool:
    """Whether values in low…high can be quantised: 0.0 is one of them, and the width is one that scales can have."""
    return low <= 0 <= high and NARROWEST <= high - low <= WIDEST


def quantisation_of(low: float, high: float) -> Quantisation:
    """The quantisation of a tensor whose values lie in low…high, of which `is_range` is true."""
    least = np.float32(low)
    scale = (np.float32(high) - least) / np.float32(LARGEST)
    return Quantisation(float(scale), int(np.clip(np.rint(-least / scale), 0, LARGEST)))


def inverse_scale(of: Quantisation) -> np.float32:
    """What a real value is multiplied by to quantise it."""
    return np.float32(1) / np.float32(of.scale)


def quantise(values: Float32Array, into: Quantisation) -> npt.NDArray[np.uint8]:
    """Real values as uint8: `clamp(rint(x · inverse_scale) + zero_point)`."""
    with np.errstate(over="ignore"):  # What is infinite is clamped.
        product = np.rint(values * inverse_scale(into))
    return np.clip(product + np.float32(into.zero_point), 0, LARGEST).astype(np.uint8)


def dequantise(values: npt.NDArray[np.uint8], of: Quantisation) -> Float32Array:
    """The real values of uint8."""
    return (values.astype(np.int32) - of.zero_point).astype(np.float32) * np.float32(of.scale)


def clamp_bounds(low: float, high: float, into: Quantisation) -> tuple[int, int]:
    """The least and largest uint8 of an operator whose results are clamped to low…high; infinite where they are not."""

    def bound(value: float, unbounded: int) -> int:
        if not math.isfinite(value):
            return unbounded
        return int(np.clip(np.rint(np.float32(value) / np.float32(into.scale)) + into.zero_point, 0, LARGEST))

    return bound(low, 0), bound(high, LARGEST)


def requantise(
    accumulated: npt.NDArray[np.int32], multiplier: Any, into: Quantisation, bounds: tuple[int, int] = (0, LARGEST)
) -> npt.NDArray[np.uint8]:
    """Sums as uint8: `clamp(rint(float32(sum) · multiplier) + zero_point)`.

    Args:
        accumulated: int32 sums.
        multiplier: float32, one or as many as broadcast against the sums.
        into: of the result.
        bounds: `clamp_bounds`.
    """
    product = np.rint(accumulated.astype(np.float32) * np.asarray(multiplier, np.float32))
    return np.clip(product + np.float32(into.zero_point), *bounds).astype(np.uint8)


def lookup_table(function: ActivationName, data: Quantisation, into: Quantisation) -> npt.NDArray[np.uint8]:
    """What each uint8 of some data becomes, uint8 [256]: `clamp(rint(f(x) / scale) + zero_point)`, in float64."""
    values = (np.arange(LARGEST + 1, dtype=np.float64) - data.zero_point) * data.scale
    steps = np.rint(activated(function, values) / into.scale) + into.zero_point
    return np.clip(steps, 0, LARGEST).astype(np.uint8)


@dataclass(frozen=True)
class QuantisedLayer:
    """The weights and biases of a convolution or dense layer.

    Attributes:
        weight: int8, of the shape of the weight.
        bias: int32 [O], in steps of `scale`: of products without zero points.
        scale: float32 [O], what one step of the sum means: that of the data times that of the weight.
    """

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    scale: Float32Array


def quantise_layer(weight: Float32Array, bias: Float32Array, data: Quantisation) -> QuantisedLayer:
    """Quantises a layer, symmetrically for each output channel.

    A channel's scale is `max|w| / 127`, but no smaller than keeps its bias within `LARGEST_BIAS` steps: BatchNorms
    leave channels with weights near 0 and a bias. Where that is below `SMALLEST_WEIGHT_SCALE` it is 1, and the channel
    is one of zeros.

    Args:
        weight: float32 [O, …], mask and BatchNorm folded in.
        bias: float32 [O].
        data: quantisation of what the layer reads.
    """
    data_scale = np.float32(data.scale)
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    of_weight = largest / np.float32(LARGEST_WEIGHT)
    of_bias = np.abs(bias) / data_scale * np.float32(1 / LARGEST_BIAS)
    scale = np.maximum(of_weight, of_bias)
    scale = np.where(scale < np.float32(SMALLEST_WEIGHT_SCALE), np.float32(1), scale)
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    quantised = np.clip(np.rint(weight / columns), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)
    sums = data_scale * scale
    steps = np.clip(np.rint(bias / sums), -LARGEST_BIAS, LARGEST_BIAS)
    return QuantisedLayer(quantised, steps.astype(np.int32), sums)


def addition_factors(left: Quantisation, right: Quantisation, into: Quantisation) -> tuple[int, int, np.float32]:
    """Of an addition: what each operand is multiplied by as an integer, and the multiplier of the sum."""
    larger = np.float32(max(left.scale, right.scale))
    steps = np.float32(ADDITION_STEPS)
    of_left, of_right = (int(np.rint(np.float32(one.scale) / larger * steps)) for one in (left, right))
    return of_left, of_right, larger / steps / np.float32(into.scale)


def product_multiplier(left: Quantisation, right: Quantisation, into: Quantisation) -> np.float32:
    """The multiplier of a product of two quantised values."""
    return np.float32(left.scale) * np.float32(right.scale) / np.float32(into.scale)


def mean_multiplier(data: Quantisation, values: int, into: Quantisation) -> np.float32:
    """The multiplier of a sum of so many values, of which the mean is wanted."""
    return np.float32(data.scale) / np.float32(values) / np.float32(into.scale)


def rescaling_multiplier(data: Quantisation, into: Quantisation) -> np.float32:
    """The multiplier of values that get another quantisation, as those of a concatenation do."""
    return np.float32(data.scale) / np.float32(into.scale)
