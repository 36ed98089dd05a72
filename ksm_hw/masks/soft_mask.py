"""The soft mask of a layer, packed: one bit a mask value, and a number only where the bit is 0.

Where the binary mask is 1 the soft mask is exactly 1.0; where it is 0 the soft mask is a number, 0.5·a of KSM (Yang et
al., CVPR 2021, arXiv 2009.05668), 0 or -1 in a ternary mask, or 0 in a binary one. So packing loses nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.mask_format import Granularity, ScaleBits, group_size

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # Of each byte.


@dataclass(frozen=True)
class PackedMask:
    """A layer's soft mask at rest.

    Attributes:
        shape: shape of the mask, as its granularity says.
        bits: uint8 [⌈n/8⌉], the binary mask in C order, the first value in the highest bit of the first byte.
        scale: the soft values where the binary mask is 0, in C order: float32 [zeros] with `scale_bits` 32;
            uint8 [zeros] with 8; uint8 [⌈zeros/2⌉], the first of a pair in the high half, with 4; uint8 [⌈zeros/8⌉],
            the first of eight in the highest bit, with 1; empty with 0.
        scale_bits: bits of a soft value; 0 is a binary mask, whose soft values are all 0.
        scale_range: (low, step): with 8, 4 and 1 bits a code q means low + q·step, computed in float32.
    """

    shape: tuple[int, ...]
    bits: UInt8Array
    scale: Float32Array | UInt8Array
    scale_bits: ScaleBits
    scale_range: tuple[float, float] = (0.0, 0.0)

    @property
    def coded(self) -> bool:
        """Whether the soft values are codes."""
        return self.scale_bits in (1, 4, 8)

    @property
    def nbytes(self) -> int:
        """Bytes of the mask at rest, without the header."""
        return self.bits.nbytes + self.scale.nbytes


def broadcast_mask(mask: Float32Array, weight_shape: tuple[int, ...], granularity: Granularity) -> Float32Array:
    """The mask in a shape that NumPy broadcasts against the weight: groups are written out, the rest is as it was."""
    size = group_size(granularity)
    return mask if size == 1 else np.repeat(mask, size, axis=1)[:, : weight_shape[1]]


def pack_mask(soft_mask: Float32Array, scale_bits: ScaleBits = 32) -> PackedMask:
    """Packs a soft mask of any shape (float32).

    A value of exactly 1.0 becomes a bit; any other is stored. With `scale_bits` 32 nothing is lost; 8 and 4 round a
    value to the nearest of 256 or 16 steps of the layer's range; 1 packs a mask of two values beside 1, such as a
    ternary one, and 0 a binary mask, both as they are.

    Raises:
        ValueError: the mask is not float32, not finite, or has more values than `scale_bits` 1 or 0 can tell apart.
    """
    if soft_mask.dtype != np.float32 or not np.isfinite(soft_mask).all():
        raise ValueError(f"a soft mask is finite float32, not {soft_mask.dtype}")
    ones = (soft_mask == 1).ravel()
    values = soft_mask.ravel()[~ones]
    bits = np.packbits(ones)
    if scale_bits == 0:
        if values.any():
            raise ValueError("scale_bits 0 packs binary masks, and this mask has soft values")
        return PackedMask(soft_mask.shape, bits, np.empty(0, np.uint8), 0)
    if scale_bits == 32:
        return PackedMask(soft_mask.shape, bits, values, 32)
    codes, scale_range = _quantise(values, scale_bits)
    packed = PackedMask(soft_mask.shape, bits, _packed_codes(codes, scale_bits), scale_bits, scale_range)
    if scale_bits == 1 and not np.array_equal(soft_values(packed), values):
        raise ValueError("scale_bits 1 packs masks of two values beside 1, and this mask has more")
    return packed


def _packed_codes(codes: UInt8Array, scale_bits: ScaleBits) -> UInt8Array:
    """Codes as they lie in `PackedMask.scale`."""
    if scale_bits == 1:
        return np.packbits(codes)
    if scale_bits == 4:
        codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
        codes = np.left_shift(codes[0::2], 4, dtype=np.uint8) | codes[1::2]
    return codes


def padded_mask(packed: PackedMask, shape: tuple[int, ...]) -> PackedMask:
    """A mask in the first places of a larger one, which is 0 elsewhere; no value of it changes.

    Soft values keep their bits where one of their codes means 0, as one of every mask of KSM does that has negative
    real values, and are float32 otherwise.
    """
    codes = np.arange(2**packed.scale_bits if packed.coded else 0, dtype=np.uint8)
    zeros = np.flatnonzero(_meanings(codes, packed.scale_range) == 0)
    if not len(zeros):
        soft_mask = padded(unpack_mask(packed), shape)
        return pack_mask(soft_mask, fewest_bits(soft_mask))
    ones = binary_mask(packed)
    codes = np.zeros(packed.shape, np.uint8)
    codes[~ones] = soft_codes(packed)
    codes, ones = padded(codes, shape, zeros[0]), padded(ones, shape)
    scale = _packed_codes(codes[~ones], packed.scale_bits)
    return PackedMask(shape, np.packbits(ones), scale, packed.scale_bits, packed.scale_range)


def selected_mask(packed: PackedMask, kept: Sequence[npt.NDArray[np.bool_]]) -> PackedMask:
    """The mask of some of a layer's channels; no value of it changes.

    Args:
        packed: the mask.
        kept: of the first axes of the mask which places stay, as `selected` takes them.
    """
    ones = binary_mask(packed)
    numbers = np.zeros(packed.shape, packed.scale.dtype)  # Soft values, or their codes, in their places.
    if packed.scale_bits:
        numbers[~ones] = soft_codes(packed) if packed.coded else packed.scale
    ones, numbers = selected(ones, kept), selected(numbers, kept)
    scale = _packed_codes(numbers[~ones], packed.scale_bits) if packed.scale_bits else packed.scale
    return PackedMask(ones.shape, np.packbits(ones), scale, packed.scale_bits, packed.scale_range)


def selected(array: npt.NDArray[Any], kept: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[Any]:
    """The places of an array's first axes that are kept; an axis of 1, whose value all places share, stays."""
    for axis, places in enumerate(kept):
        if array.shape[axis] == len(places):
            array = array.compress(places, axis)
    return array


def padded(array: npt.NDArray[Any], shape: tuple[int, ...], value: float = 0) -> npt.NDArray[Any]:
    """An array in the first places of a larger one, which holds a value elsewhere; itself where it is no smaller."""
    if array.shape == shape:
        return array
    wide = np.full(shape, value, array.dtype)
    wide[tuple(map(slice, array.shape))] = array
    return wide


def fewest_bits(soft_mask: Float32Array) -> ScaleBits:
    """The fewest `scale_bits` that lose nothing of a soft mask: 0 for a binary one, 1 for a ternary one, or 32."""
    others = soft_mask[soft_mask != 1]
    if not others.any():
        return 0
    low, high = others.min(), others.max()
    # As `pack_mask` computes them, for which the sum must give the higher value again.
    return 1 if ((others == low) | ((others == high) & (low + (high - low) == high))).all() else 32


def _quantise(values: Float32Array, bits: int) -> tuple[UInt8Array, tuple[float, float]]:
    if not len(values):
        return np.empty(0, np.uint8), (0.0, 0.0)
    low = values.min()
    step = np.float32((values.max() - low) / (2**bits - 1))
    codes = np.zeros(len(values), np.uint8) if step == 0 else np.rint((values - low) / step).astype(np.uint8)
    return codes, (float(low), float(step))


def binary_mask(packed: PackedMask) -> npt.NDArray[np.bool_]:
    """The binary mask in the mask's shape."""
    count = int(np.prod(packed.shape))
    return np.unpackbits(packed.bits, count=count).astype(bool).reshape(packed.shape)


def ones_among(bits: UInt8Array, count: int) -> int:
    """How many of the first `count` bits are 1; none is written out, for a damaged file may claim many."""
    whole, rest = divmod(count, 8)
    last = np.unpackbits(bits[whole : whole + 1])[:rest]
    return int(_ONES[bits[:whole]].sum(dtype=np.int64)) + int(last.sum())


def soft_values(packed: PackedMask) -> Float32Array:
    """The soft values where the binary mask is 0, float32 [zeros], in C order; empty for a binary mask."""
    if not packed.coded:
        return packed.scale.astype(np.float32, copy=False)
    return _meanings(soft_codes(packed), packed.scale_range)


def _meanings(codes: UInt8Array, scale_range: tuple[float, float]) -> Float32Array:
    low, step = scale_range
    return np.float32(low) + codes.astype(np.float32) * np.float32(step)


def soft_codes(packed: PackedMask) -> UInt8Array:
    """The codes of the soft values of a mask with 8, 4 or 1 `scale_bits`, uint8 [zeros], in C order, each in a byte."""
    codes = packed.scale.astype(np.uint8, copy=False)
    if packed.scale_bits == 8:
        return codes
    count = int(np.prod(packed.shape))
    zeros = count - ones_among(packed.bits, count)
    if packed.scale_bits == 1:
        return np.unpackbits(codes, count=zeros)
    return np.stack([codes >> 4, codes & 15], axis=1).ravel()[:zeros]


def unpack_mask(packed: PackedMask) -> Float32Array:
    """The soft mask, float32, in the mask's shape; bit-identical to what was packed when `scale_bits` is 0, 1 or 32."""
    ones = binary_mask(packed)
    soft_mask = ones.astype(np.float32)
    if packed.scale_bits:
        soft_mask[~ones] = soft_values(packed)
    return soft_mask


def stored_soft_values(zeros: int, scale_bits: ScaleBits) -> int:
    """How many numbers of `PackedMask.scale` so many soft values are."""
    return {0: 0, 1: -(-zeros // 8), 4: -(-zeros // 2), 8: zeros, 32: zeros}[scale_bits]


def check_packed(packed: PackedMask, where: str) -> None:
    """Checks that bits and soft values have the dtypes and lengths that the shape and the bits themselves ask for.

    Raises:
        UserError: they do not; `where` names the file and layer in the message.
    """
    low, step = packed.scale_range
    sensible = (
        packed.scale_bits in get_args(ScaleBits)
        and all(isinstance(extent, int) and extent > 0 for extent in packed.shape)
        # What float64 holds may be more than float32 does; not a number fails as well.
        and abs(low) + 255 * abs(step) <= float(np.finfo(np.float32).max)
        and packed.bits.dtype == np.uint8
        and packed.scale.dtype == (np.float32 if packed.scale_bits == 32 else np.uint8)
    )
    if not sensible:
        raise UserError(
            f"{where}: no mask has shape {list(packed.shape)}, bits {packed.bits.dtype}, and soft values "
            f"{packed.scale.dtype} of {packed.scale_bits} bits over {packed.scale_range}. "
            "The file is damaged; learn or copy the task again."
        )
    if not np.isfinite(packed.scale).all():
        raise UserError(
            f"{where}: soft values that are not finite (NaN or infinite). The file is damaged, or the training that "
            "made it diverged; learn or copy the task again."
        )
    count = math.prod(packed.shape)  # NumPy's wraps around where a damaged shape is huge.
    if packed.bits.shape != (-(-count // 8),):
        raise UserError(
            f"{where}: a mask of shape {list(packed.shape)} needs {-(-count // 8)} bytes of bits, found "
            f"{packed.bits.size}. The file is damaged; learn or copy the task again."
        )
    zeros = count - ones_among(packed.bits, count)
    expected = stored_soft_values(zeros, packed.scale_bits)
    if packed.scale.shape != (expected,):
        raise UserError(
            f"{where}: {zeros} zeros of the mask need {expected} stored soft values, found {packed.scale.size}. "
            "The file is damaged; learn or copy the task again."
        )
