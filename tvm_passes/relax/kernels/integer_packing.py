"""How quantised weights lie for the products of `integer_vectors`, and how a kernel that rewrites one packs it so.

A weight's values are rows of output channels, [kH · kW · I, O] in that order. A step of a kernel reads four rows of
some channels at once, or eight.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

NEAR = 16
"""Channels of a row that a kernel keeps near."""
NOTHING = -1
"""A row of zeros."""


@dataclass(frozen=True)
class IntegerPacking:
    """The layout of a packed weight, int8 [vectors of channels, steps, width · rows of a step].

    Attributes:
        segments: how many steps, and the rows that the first of them reads; each later one reads the rows that stand
            as many behind those of the one before.
        order: of a step's values, each as rows of a step · channel + row.
        groups: of the output channels, each with vectors of its own; the last of them is filled up with zeros.
    """

    segments: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    groups: int = 1

    @property
    def rows(self) -> int:
        """That a step reads."""
        return len(self.segments[0]) - 1

    @property
    def width(self) -> int:
        """Channels of a vector."""
        return len(self.order) // self.rows

    @property
    def steps(self) -> int:
        """Of all segments."""
        return sum(count for count, *_rows in self.segments)

    def vectors(self, outputs: int) -> int:
        """Vectors of a group, of a weight of so many output channels."""
        return -(-outputs // self.groups // self.width)

    def shape(self, outputs: int) -> tuple[int, int, int]:
        """Of the packed weight."""
        return self.groups * self.vectors(outputs), self.steps, len(self.order)

    def in_rows(self, values: int) -> bool:
        """Whether steps read a channel's so many values in their order, and zeros behind the last."""
        (count, *rows), *others = self.segments
        whole, rest = divmod(values, self.rows)
        tail = (1, *range(whole * self.rows, values), *[NOTHING] * (self.rows - rest))
        return (count, rows) == (whole, list(range(self.rows))) and others == ([tail] if rest else [])

    def pack(self, near: tirx.Var, result: tirx.Var, vector: tirx.Expr, channels: int) -> None:
        """Writes up to 16 channels.

        Args:
            near: their rows, int8 [kH · kW · I · 16].
            result: the packed weight, as one row.
            vector: the first that is written.
            channels: how many.
        """
        zeros = T.broadcast(T.int8(0), NEAR)
        begin, first = T.bind(vector * (self.steps * len(self.order))), 0
        for count, *rows in self.segments:
            with T.serial(count) as step:
                start = T.bind(step * (self.rows * NEAR))
                read = [zeros if row == NOTHING else T.bind(near[T.ramp(start + row * NEAR, 1, NEAR)]) for row in rows]
                for part in range(-(-channels // self.width)):
                    place = begin + (step + (part * self.steps + first)) * len(self.order)
                    indices = [one % self.rows * NEAR + part * self.width + one // self.rows for one in self.order]
                    packed = T.Shuffle(read, [T.int32(index) for index in indices])
                    T.buffer_store(result, packed, [T.ramp(place, 1, len(self.order))])
            first += count


def step_order(vectors: IntegerVectors, width: int) -> tuple[int, ...]:
    """The order of a step's values of so many channels: those of each register behind those of the one before."""
    rows = vectors.packed_step
    size = vectors.lanes * rows
    places = [(place // size, *vectors.lane_and_byte(place % size)) for place in range(width * rows)]
    return tuple(int(rows * (part * vectors.lanes + lane) + byte) for part, lane, byte in places)
