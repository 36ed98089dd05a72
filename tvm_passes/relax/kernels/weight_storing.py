"""Where a weight's values go: rows turned into vectors of output channels, and stored in the layout of the result."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.mask_decoding import LANES
from tvm_passes.relax.kernels.winograd import linear_combination, transforms

KERNEL = 9
"""Values of a 3×3 kernel."""

# Three rounds turn 8 vectors over: vector k meets vector k + distance, twice value by value within halves of 128 bits,
# and then the halves. On x86-64 each shuffle is one instruction.
_LOW, _HIGH = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
_ROUNDS = ((2, _LOW, _HIGH), (1, _LOW, _HIGH), (4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)))


@dataclass(frozen=True)
class ChannelGroup:
    """Up to 8 neighbouring output channels.

    Attributes:
        channel: the first, in the weight.
        block, lane: the first, in the result: the block of packed weights and the place in it.
        count: how many.
        place: the first, in the task's own buffers.
        width: of the vectors that hold a value of each.
    """

    channel: tirx.Expr
    block: tirx.Expr
    lane: tirx.Expr
    count: int
    place: int
    width: int = LANES


@dataclass(frozen=True)
class WeightStore:
    """The result of a kernel, and its layout.

    Attributes:
        result: the result.
        kernel: height and width of the weight's kernel; nothing for a matrix.
        packed: whether the result is packed into blocks of output channels.
        tile: of Winograd's form; None for another.
    """

    result: tirx.Var
    kernel: tuple[int, ...]
    packed: bool
    tile: int | None

    def store(self, start: tirx.Expr, group: ChannelGroup, value: int, vector: tirx.Expr) -> None:
        """Writes one value of each channel of a group, the how manieth behind `start` in a row of the weight."""
        *indices, _lane = self.place(group, start + value)
        self._write(group, indices, vector)

    def _write(self, group: ChannelGroup, indices: list[tirx.Expr | int], vector: tirx.Expr) -> None:
        """Writes the values of the channels of a group to the result."""
        if group.count == group.width:
            T.buffer_store(self.result, vector, [*indices, T.ramp(group.lane, 1, group.count)])
            return
        vector = T.bind(vector)
        for place in range(group.count):
            T.buffer_store(self.result, T.Shuffle([vector], [T.int32(place)]), [*indices, group.lane + place])

    def place(self, group: ChannelGroup, value: tirx.Expr) -> list[tirx.Expr]:
        """Where the result has a value of the first channel of a group."""
        size = math.prod(self.kernel)
        inputs, value = tirx.floordiv(value, size), tirx.floormod(value, size)
        indices: list[tirx.Expr] = []
        for extent in reversed(self.kernel):
            indices.insert(0, tirx.floormod(value, extent))
            value = tirx.floordiv(value, extent)
        return [*([group.block] if self.packed else []), *indices, inputs, group.lane]

    def transform(self, groups: list[ChannelGroup], near: tirx.Var, kernel: tirx.Expr, channel: tirx.Expr) -> None:
        """G g Gᵀ of the kernels of one input channel; all channels of a cache line are written one behind the other."""
        assert self.tile is not None
        weight, dtype = transforms(self.tile).weight, str(self.result.dtype)

        def value(group: ChannelGroup, kx: int, ky: int) -> tirx.Expr:
            return near[kernel * KERNEL + 3 * ky + kx, T.ramp(group.place, 1, LANES)]

        def row(coefficients: tuple[Fraction, ...], group: ChannelGroup) -> list[tirx.Expr]:
            """A row of G g."""
            return [T.bind(linear_combination(coefficients, partial(value, group, kx), dtype)) for kx in range(3)]

        for a, coefficients in enumerate(weight):
            rows = [row(coefficients, group) for group in groups]
            for b, others in enumerate(weight):
                for group, columns in zip(groups, rows, strict=True):
                    combined = linear_combination(others, columns.__getitem__, dtype)
                    self._write(group, [a, b, group.block, channel], combined)


def transposed(rows: list[tirx.Expr]) -> list[tirx.Expr]:
    """8 vectors, the n-th of the n-th value of each row. Rows that are missing, up to 8, give any value."""
    vectors = [*rows, *[rows[0]] * (LANES - len(rows))]
    for distance, low, high in _ROUNDS:
        turned = list(vectors)
        for first in range(LANES):
            if first & distance == 0:
                pair = [vectors[first], vectors[first + distance]]
                for place, indices in ((first, low), (first + distance, high)):
                    turned[place] = T.bind(T.Shuffle(pair, [T.int32(index) for index in indices]))
        vectors = turned
    return vectors
