"""A packed mask decoded inside a kernel, 8 values at a time.

A packed mask has a bit a value, and a soft value where the bit is 0. What to do with 8 bits stands in a table,
`decoding_table`: how many soft values come before each of the 8 values.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import tirx as T

LANES = 8
"""Values in a vector: a byte of the mask. CPUs with shorter vectors take two. Masks must have as many soft values."""
LINE_BYTES = 64
"""Of the cache."""
DTYPE = "float32"
"""What weights and masks are multiplied in."""
VECTOR = f"{DTYPE}x{LANES}"
_COUNTS = 2048  # Where the counts of zeros begin in `decoding_table`.

Number: TypeAlias = "int | tirx.Expr"
"""Known when a kernel is made, or when it runs."""


def quotient(number: Number, divisor: int) -> Number:
    """Rounded down."""
    return number // divisor if isinstance(number, int) else tirx.floordiv(number, divisor)


def decoding_table() -> npt.NDArray[np.int8]:
    """int8 [2304]: what to do with each byte b of a mask.

    At 8·b stands for each of its 8 values how many zeros come before it, or a negative number where it is a one; at
    2048 + b how many zeros the byte has.
    """
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8)
    zeros = np.cumsum(1 - ones, axis=1, dtype=np.int8)
    return np.concatenate([np.where(ones, -1, zeros - 1).astype(np.int8).ravel(), zeros[:, -1]])


def mask_arguments(rows: Number, columns: Number, coded: bool) -> tuple[tirx.Var, ...]:
    """The parameters of a kernel that decodes a mask: `decoding_table`, and the mask as `FoldTaskMask` describes it."""
    table = T.arg("table", T.buffer((_COUNTS + 256,), "int8"))
    bits = T.arg("bits", T.buffer((quotient(rows * columns + 7, 8),), "uint8"))
    scale = T.arg("scale", T.buffer((tirx.Var("zeros", "int64"),), "uint8" if coded else DTYPE))
    row_start = T.arg("row_start", T.buffer((rows,), "int32"))
    return table, bits, scale, row_start, T.arg("scale_range", T.buffer((2,), DTYPE))


@dataclass(frozen=True)
class MaskDecoder:
    """A packed mask, and how to decode it.

    Attributes:
        table: `decoding_table`.
        bits, scale, row_start: the mask.
        scale_range: (low, step) of coded soft values; nothing where they are numbers themselves.
        last: index of the last soft value. What lies behind it is a binary mask's: any value is its 0.
        size: how many values the mask has.
        aligned: whether each row begins with a byte.
        permutes: whether the CPU has AVX2.
    """

    table: tirx.Var
    bits: tirx.Var
    scale: tirx.Var
    row_start: tirx.Var
    scale_range: tuple[tirx.Expr, ...]
    last: tirx.Expr
    size: Number
    aligned: bool
    permutes: bool

    @property
    def line(self) -> int:
        """Soft values in a cache line."""
        return LINE_BYTES // self.scale.dtype.itemsize

    def decode(self, bit: tirx.Expr, position: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """8 values of the mask, and how far the position moves.

        Args:
            bit: place of the first one's bit. Bits behind the last one of the mask give any value.
            position: of the next soft value.
        """
        byte = T.bind(self._byte(bit))
        before = T.bind(T.cast(self.table[T.ramp(byte * 8, 1, LANES)], f"int32x{LANES}"))
        zeros = T.cast(self.table[byte + _COUNTS], "int32")
        soft = self._permuted(position, before) if self.permutes else self._gathered(position, before)
        is_one = before < T.broadcast(T.int32(0), LANES)
        return T.bind(T.Select(is_one, T.broadcast(T.float32(1), LANES), soft)), zeros

    def _gathered(self, position: tirx.Expr, before: tirx.Expr) -> tirx.Expr:
        index = tirx.min(position + before, T.broadcast(self.last, LANES))
        return self._soft(tirx.max(index, T.broadcast(T.int32(0), LANES)))

    def _permuted(self, position: tirx.Expr, before: tirx.Expr) -> tirx.Expr:
        """As `_gathered`, with one load and an instruction of AVX2, which takes an index's low bits, in place of 8."""
        start = T.bind(tirx.min(position, self.last - (LANES - 1)))
        values, index = self._soft(T.ramp(start, 1, LANES)), before + T.broadcast(position - start, LANES)
        return T.call_llvm_pure_intrin(VECTOR, "llvm.x86.avx2.permps", values, index)

    def _soft(self, index: tirx.Expr) -> tirx.Expr:
        """8 soft values."""
        values = self.scale[index]
        if not self.scale_range:
            return values
        low, step = (T.broadcast(number, LANES) for number in self.scale_range)
        return low + T.cast(values, VECTOR) * step

    def _byte(self, bit: tirx.Expr) -> tirx.Expr:
        """8 bits of the mask as int32, from any place on."""
        index = T.bind(tirx.floordiv(bit, 8))
        if self.aligned:
            return T.cast(self.bits[index], "int32")
        following = T.cast(self.bits[tirx.min(index + 1, quotient(self.size - 1, 8))], "int32")
        both = T.bitwise_or(T.shift_left(T.cast(self.bits[index], "int32"), T.int32(8)), following)
        return T.bitwise_and(T.shift_right(both, 8 - tirx.floormod(bit, 8)), T.int32(255))


def decoder_of(
    arguments: tuple[tirx.Var, ...], rows: Number, columns: Number, aligned: bool, permutes: bool
) -> MaskDecoder:
    """What decodes a mask of so many rows and columns, of the `mask_arguments`."""
    table, bits, scale, row_start, scale_range = arguments
    coded = str(scale.dtype) == "uint8"
    numbers = (T.bind(scale_range[0]), T.bind(scale_range[1])) if coded else ()
    last = T.bind(T.cast(scale.shape[0] - 1, "int32"))
    return MaskDecoder(table, bits, scale, row_start, numbers, last, rows * columns, aligned, permutes)
