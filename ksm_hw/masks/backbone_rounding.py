"""A backbone's weights at rest in fewer bits, and what they are again once they are read.

Weights, which have two axes or more, are rounded; what has one (BatchNorms, biases, slopes) stays float32, for it is
little, and a variance may be too small for any other type. At rest lies

    <name>          float16, or int8 from -127 to 127: the weight, in its shape [O, …]
    <name>/scale    with int8, float32 [O]: what a step of each output channel means

and the weight is `float32(value)`, or `float32(value) · scale`. A scale has 17 significant bits, so that this product
has no rounding of its own, on any machine, and what was read can be written again without a loss.

What reads an image's three channels is float16 where the others are int8: it is small, and on even ground the rounding
of so few products does not average out, but shifts whole channels (docs/quantisation.md). Where its weights are too
large or too small for float16 it stays float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_precision import BackbonePrecision

Arrays = Mapping[str, npt.NDArray[Any]]
Float32Array = npt.NDArray[np.float32]

SCALE = "/scale"
_LARGEST = 127
_FLOAT16_END, _FLOAT16_START = 65520.0, 2.0**-14  # What rounds to infinity, and the least with all digits.
_SPARE_BITS = 7  # Of a scale's 24 significant bits: what 127 takes.
_LARGEST_SCALE = 2.0**120  # Where float32 has products with 128 still.
_SMALLEST_SCALE = 2.0**-100  # A channel whose scale would be smaller becomes one of zeros.


def rounded_arrays(tensors: Mapping[str, Float32Array], precision: BackbonePrecision) -> dict[str, npt.NDArray[Any]]:
    """A backbone's tensors as they lie at rest.

    Args:
        tensors: float32, by their names.
        precision: of weights.

    Raises:
        UserError: all weights were to be float16, which cannot hold those of a layer.
    """
    stored: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in tensors.items():
        match _type_at_rest(tensor, precision):
            case "float32":
                stored[name] = tensor
            case "float16":
                stored[name] = tensor if precision == "int8" and _float16_fault(tensor) else _as_float16(name, tensor)
            case "int8":
                stored[name], stored[name + SCALE] = _as_int8(tensor)
    return stored


def exact_tensors(stored: Arrays, precision: BackbonePrecision, path: Path) -> dict[str, Float32Array]:
    """The tensors, float32, that lie at rest in a file.

    Raises:
        UserError: a tensor has another type than the precision says, or a weight has no scales of its channels.
    """
    if precision == "float32":
        return dict(stored)
    scales = {name: array for name, array in stored.items() if name.endswith(SCALE)}
    tensors = {}
    for name, array in stored.items():
        if name.endswith(SCALE):
            continue
        expected = _type_at_rest(array, precision)
        if array.dtype != expected and not (array.dtype == np.float32 and (precision, expected) == ("int8", "float16")):
            raise UserError(f"{path} has '{name}' as {array.dtype}; expected {expected}. Copy it again.")
        tensors[name] = decoded(array, scales.pop(name + SCALE, None), f"'{name}' of {path}")
    if scales:
        raise UserError(f"{path} has '{next(iter(scales))}', but no weight of int8 beside it. Copy it again.")
    return tensors


def decoded(array: npt.NDArray[Any], scale: npt.NDArray[Any] | None, where: str) -> Float32Array:
    """One tensor as float32.

    Raises:
        UserError: int8 lacks the scales of its channels, or another type has some.
    """
    if array.dtype != np.int8 and scale is None:
        return array if array.dtype == np.float32 else array.astype(np.float32)
    shape = array.shape[:1] if array.dtype == np.int8 else None
    if scale is None or scale.dtype != np.float32 or scale.shape != shape or not _are_scales(scale):
        found = "none" if scale is None else f"{list(scale.shape)} of {scale.dtype}{_no_scale_among(scale)}"
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}; expected int8 and as many scales above 0, float32, as it "
            f"has output channels, found {found}. The file is damaged; copy it again."
        )
    return array.astype(np.float32) * scale.reshape(-1, *[1] * (array.ndim - 1))


def _are_scales(scale: Float32Array) -> bool:
    """Whether each is above 0, and its product with what int8 holds finite."""
    return bool(((scale > 0) & (scale < _LARGEST_SCALE)).all())


def _no_scale_among(numbers: npt.NDArray[Any]) -> str:
    """The first that is no scale, for a person to see what is wrong."""
    return next((f", {number:g} among them" for number in numbers.flat if not 0 < number < _LARGEST_SCALE), "")


def _type_at_rest(tensor: npt.NDArray[Any], precision: BackbonePrecision) -> BackbonePrecision:
    if tensor.ndim < 2:
        return "float32"
    reads_image = tensor.ndim == 4 and tensor.shape[1] == 3
    return "float16" if reads_image and precision == "int8" else precision


def _as_float16(name: str, tensor: Float32Array) -> npt.NDArray[np.float16]:
    if fault := _float16_fault(tensor):
        raise UserError(
            f"'{name}' of the backbone has weights up to {np.abs(tensor).max():g}, and float16 {fault}. Keep it "
            "in float32 or int8: --backbone-precision."
        )
    with np.errstate(under="ignore"):
        return tensor.astype(np.float16)


def _float16_fault(tensor: Float32Array) -> str:
    """Why a tensor cannot be float16; empty where it can."""
    largest = float(np.abs(tensor).max(initial=0))
    if not largest < _FLOAT16_END:
        return "ends at 65504"
    return "loses digits below 6.1e-05" if 0 < largest < _FLOAT16_START else ""


def _as_int8(tensor: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    largest = np.abs(tensor).reshape(len(tensor), -1).max(axis=1)
    scale = _with_spare_bits(largest / np.float32(_LARGEST))
    scale = np.where(scale < np.float32(_SMALLEST_SCALE), np.float32(1), scale)
    steps = np.rint(tensor / scale.reshape(-1, *[1] * (tensor.ndim - 1)))
    return np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8), scale


def _with_spare_bits(scale: Float32Array) -> Float32Array:
    """Each number rounded so that its last bits are 0; in a float32 a number is in the order of its bits."""
    half = np.uint32(1 << (_SPARE_BITS - 1))
    return ((scale.view(np.uint32) + half) >> _SPARE_BITS << _SPARE_BITS).view(np.float32)
