"""A packed mask decoded inside a kernel, 8 values at a time.

A packed mask has a bit a value, and a soft value where the bit is 0. What to do with 8 bits stands in a table,
`decoding_table`: how many soft values come before each of the 8 values.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import target_has_features

from tvm_passes.relax.kernels.rounded_product import rounded

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


class Permutation(Enum):
    """What a CPU has to put neighbours in memory in the order that a mask wants."""

    AVX2 = auto()
    NEON = auto()


def permutation_of(target: tvm.target.Target) -> Permutation | None:
    """What the CPU has; None where soft values are gathered one by one."""
    if target_has_features("avx2", target):
        return Permutation.AVX2
    if target_has_features("neon", target) and str(target.attrs.get("mtriple", "")).startswith(("aarch64", "arm64")):
        return Permutation.NEON
    return None


@dataclass(frozen=True)
class MaskDecoder:
    """A packed mask, and how to decode it.

    Attributes:
        table: `decoding_table`.
        bits, scale, row_start: the mask.
        scale_range: (low, step) of coded soft values; nothing where they are numbers themselves.
        rounds: whether code · step is rounded before low is added.
        last: index of the last soft value. What lies behind it is a binary mask's: any value is its 0.
        size: how many values the mask has.
        aligned: whether each row begins with a byte.
        permutation: how the CPU puts neighbours in memory in the order that a mask wants; None if it cannot.
    """

    table: tirx.Var
    bits: tirx.Var
    scale: tirx.Var
    row_start: tirx.Var
    scale_range: tuple[tirx.Expr, ...]
    rounds: bool
    last: tirx.Expr
    size: Number
    aligned: bool
    permutation: Permutation | None

    @property
    def line(self) -> int:
        """Soft values in a cache line."""
        return LINE_BYTES // self.scale.dtype.itemsize

    def decoded_row(self, channel: tirx.Expr, outputs: Number, soft: tirx.Var) -> "MaskDecoder":
        """The decoder of one row, whose soft values are decoded first, once each, from their codes, and do not end.

        Args:
            channel: the row.
            outputs: how many rows the mask has.
            soft: where they are written, from the 8th on: float32, of 16 more than a row's values. Before the first row
                it holds `any_soft_value`.
        """
        last, begin = self.last, T.bind(self.row_start[channel])
        following = self.row_start[tirx.min(channel + 1, outputs - 1)]
        count = T.bind(T.Select(channel + 1 < outputs, following, last + 1) - begin)
        steps = T.bind(tirx.max(tirx.floordiv(count + (LANES - 1), LANES), 0))
        with T.If(begin + steps * LANES <= last + 1):
            with T.Then(), T.serial(steps) as step:
                self._write_soft_values(soft, begin + step * LANES, (step + 1) * LANES)
            with T.Else(), T.serial(steps) as step:
                # The last codes are read with others before them, and written with those in their places.
                wanted = T.bind(begin + step * LANES)
                start = T.bind(tirx.min(wanted, last - (LANES - 1)))
                self._write_soft_values(soft, start, step * LANES + tirx.max(LANES - (wanted - start), 0))
        return replace(self, scale=soft, scale_range=())

    def _write_soft_values(self, soft: tirx.Var, position: tirx.Expr, place: tirx.Expr) -> None:
        T.buffer_store(soft, self._soft(T.ramp(position, 1, LANES)), [T.ramp(place, 1, LANES)])

    def any_soft_value(self) -> tirx.Expr:
        """8 times the first: of a binary mask what each 0 is."""
        return self._soft(T.broadcast(T.int32(0), LANES))

    def decode(self, bit: tirx.Expr, position: tirx.Expr, ends: bool = True) -> tuple[tirx.Expr, tirx.Expr]:
        """8 values of the mask, and how far the position moves.

        Args:
            bit: place of the first one's bit. Bits behind the last one of the mask give any value.
            position: of the next soft value.
            ends: whether fewer than 8 soft values may be left from there on.
        """
        byte = T.bind(self._byte(bit))
        before = self.table[T.ramp(byte * 8, 1, LANES)]
        zeros = T.cast(self.table[byte + _COUNTS], "int32")
        if self.permutation is Permutation.NEON:
            return T.bind(self._looked_up(position, T.bind(before), ends)), zeros
        before = T.bind(T.cast(before, f"int32x{LANES}"))
        soft = (self._permuted if self.permutation else self._gathered)(position, before, ends)
        is_one = before < T.broadcast(T.int32(0), LANES)
        return T.bind(T.Select(is_one, T.broadcast(T.float32(1), LANES), soft)), zeros

    def _looked_up(self, position: tirx.Expr, before: tirx.Expr, ends: bool) -> tirx.Expr:
        """8 values by NEON's `tbl`: bytes of a register by their indices, and 0 by one behind its end, as a one has."""
        is_one = before < T.broadcast(T.int8(0), LANES)
        start = position
        if ends:
            start = T.bind(tirx.min(position, self.last - (LANES - 1)))
            moved = T.broadcast(T.cast(position - start, "int8"), LANES)
            before = T.bind(T.Select(is_one, before, before + moved))
        window = T.bind(self.scale[T.ramp(start, 1, LANES)])
        ones = T.broadcast(T.float32(1), LANES)
        if not self.scale_range:
            return T.Select(is_one, ones, _floats_at(window, before))
        low, _ = self.scale_range
        # A one has the code 0.
        return T.Select(is_one, ones, T.broadcast(low, LANES)) + self._above_low(_bytes_at(window, before))

    def _gathered(self, position: tirx.Expr, before: tirx.Expr, ends: bool) -> tirx.Expr:
        index = position + before
        if ends:
            index = tirx.min(index, T.broadcast(self.last, LANES))
        return self._soft(tirx.max(index, T.broadcast(T.int32(0), LANES)))

    def _permuted(self, position: tirx.Expr, before: tirx.Expr, ends: bool) -> tirx.Expr:
        """As `_gathered`, with one load and an instruction of AVX2, which takes an index's low bits, in place of 8."""
        start, index = position, before
        if ends:
            start = T.bind(tirx.min(position, self.last - (LANES - 1)))
            index = before + T.broadcast(position - start, LANES)
        values = self._soft(T.ramp(start, 1, LANES))
        return T.call_llvm_pure_intrin(VECTOR, "llvm.x86.avx2.permps", values, index)

    def _soft(self, index: tirx.Expr) -> tirx.Expr:
        """8 soft values."""
        values = self.scale[index]
        if not self.scale_range:
            return values
        return T.broadcast(self.scale_range[0], LANES) + self._above_low(values)

    def _above_low(self, codes: tirx.Expr) -> tirx.Expr:
        """What 8 codes add to the lowest soft value."""
        product = T.cast(codes, VECTOR) * T.broadcast(self.scale_range[1], LANES)
        return rounded(product, VECTOR) if self.rounds else product

    def _byte(self, bit: tirx.Expr) -> tirx.Expr:
        """8 bits of the mask as int32, from any place on."""
        index = T.bind(tirx.floordiv(bit, 8))
        if self.aligned:
            return T.cast(self.bits[index], "int32")
        following = T.cast(self.bits[tirx.min(index + 1, quotient(self.size - 1, 8))], "int32")
        both = T.bitwise_or(T.shift_left(T.cast(self.bits[index], "int32"), T.int32(8)), following)
        return T.bitwise_and(T.shift_right(both, 8 - tirx.floormod(bit, 8)), T.int32(255))


def _bytes_at(window: tirx.Expr, index: tirx.Expr) -> tirx.Expr:
    """8 of 8 bytes as uint32; 0 for an index behind them."""
    nothing = T.broadcast(T.uint8(0), LANES)
    register = T.Shuffle([window, nothing], [T.int32(place) for place in range(2 * LANES)])
    found = T.bind(T.call_llvm_pure_intrin(f"uint8x{LANES}", "llvm.aarch64.neon.tbl1", register, index))
    # As pairs of bytes, which LLVM widens in one instruction; for bytes it takes two and clears what is above.
    pairs = T.Shuffle([found, nothing], [T.int32(place) for value in range(LANES) for place in (value, LANES + value)])
    return T.cast(T.reinterpret(f"uint16x{LANES}", pairs), f"uint32x{LANES}")


def _floats_at(window: tirx.Expr, index: tirx.Expr) -> tirx.Expr:
    """8 of 8 float32."""
    # The bytes 4i to 4i + 3.
    wide = T.cast(index, f"int32x{LANES}") * T.broadcast(T.int32(0x04040404), LANES)
    places = T.bind(wide + T.broadcast(T.int32(0x03020100), LANES))
    halves = [[T.int32(place) for place in range(first, first + 4)] for first in (0, 4)]
    register = [T.reinterpret("uint8x16", T.Shuffle([window], half)) for half in halves]
    found = []
    for half in halves:
        bytes_ = T.reinterpret("uint8x16", T.Shuffle([places], half))
        found.append(T.call_llvm_pure_intrin("uint8x16", "llvm.aarch64.neon.tbl2", *register, bytes_))
    both = [T.reinterpret(f"{DTYPE}x4", half) for half in found]
    return T.Shuffle(both, [T.int32(place) for place in range(LANES)])


def decoder_of(
    arguments: tuple[tirx.Var, ...],
    rows: Number,
    columns: Number,
    aligned: bool,
    permutation: Permutation | None,
    rounds: bool,
) -> MaskDecoder:
    """What decodes a mask of so many rows and columns, of the `mask_arguments`."""
    table, bits, scale, row_start, scale_range = arguments
    coded = str(scale.dtype) == "uint8"
    numbers = (T.bind(scale_range[0]), T.bind(scale_range[1])) if coded else ()
    last = T.bind(T.cast(scale.shape[0] - 1, "int32"))
    return MaskDecoder(table, bits, scale, row_start, numbers, rounds, last, rows * columns, aligned, permutation)
