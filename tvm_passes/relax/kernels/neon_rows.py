"""How NEON masks the rows of a weight: 4 output channels at a time.

A step of 8 rows, as `weight_rewrite` takes it for AVX2, needs more addresses than arm64 has registers: of each row the
weight, the bits and the soft values lie elsewhere. So a task is done in tiles of 64 columns, and in a tile 4 rows after
4 rows: the lines of the result, which hold 16 channels, stay in the first cache until all are written.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.mask_decoding import DTYPE, LANES, MaskDecoder, Number, quotient
from tvm_passes.relax.kernels.weight_storing import ChannelGroup, WeightStore

ROWS = 4
"""Values in a register."""
_TILE = 8  # Steps of 8 columns.


@dataclass(frozen=True)
class NeonRows:
    """What a task reads and writes.

    Attributes:
        weight: as one row behind the other, each of a multiple of 8 values.
        values: how many a row has, of the weight and of the mask.
        outputs: rows of the weight.
        decoder: of the mask.
        store: of the result.
        prefetch: asks, with the first column of a step, for what 16 rows of it need later.
    """

    weight: tirx.Var
    values: Number
    outputs: Number
    decoder: MaskDecoder
    store: WeightStore
    prefetch: Callable[[tirx.Expr], None]

    def emit(self, first: ChannelGroup, channels: int, factors: list[tirx.Expr]) -> None:
        """A task of so many channels, a multiple of 4, from those of a group on.

        Args:
            first: the task's first channels.
            channels: up to 16.
            factors: of each 8 channels, what they are multiplied with; nothing if they are not.
        """
        position = T.alloc_buffer((channels,), "int32", scope="local")
        for row in range(channels):
            T.buffer_store(position, self.decoder.row_start[first.channel + row], [row])
        factor = T.alloc_buffer((len(factors) * LANES,), DTYPE, scope="local") if factors else None
        for number, vector in enumerate(factors):
            T.buffer_store(factor, vector, [T.ramp(number * LANES, 1, LANES)])
        # Only the last rows come near the end of the soft values: where that is depends on the mask.
        behind = first.channel + channels
        end = tirx.Select(
            behind < self.outputs, self.decoder.row_start[tirx.min(behind, self.outputs - 1)], self.decoder.last + 1
        )
        with T.If(end + LANES <= self.decoder.last + 1):
            with T.Then():
                self._tiles(first, channels, position, factor, ends=False)
            with T.Else():
                self._tiles(first, channels, position, factor, ends=True)

    def _tiles(
        self, first: ChannelGroup, channels: int, position: tirx.Var, factor: tirx.Var | None, ends: bool
    ) -> None:
        steps = quotient(self.values, LANES)
        with T.serial(quotient(steps + _TILE - 1, _TILE)) as tile:
            start = T.bind(tile * _TILE)
            count = T.bind(tirx.min(T.int32(_TILE), steps - start))
            with T.serial(count) as step:
                self.prefetch((start + step) * LANES)
            with T.serial(channels // ROWS) as number:
                place = T.bind(number * ROWS)
                group = ChannelGroup(first.channel + place, first.block, first.lane + place, ROWS, place, ROWS)
                # In registers, which have no index.
                near = T.alloc_buffer((ROWS,), "int32", scope="local")
                for row in range(ROWS):
                    T.buffer_store(near, position[place + row], [row])
                scale = None if factor is None else T.bind(factor[T.ramp(place, 1, ROWS)])
                with T.serial(count) as step:
                    self._step(group, T.bind((start + step) * LANES), near, scale, ends)
                for row in range(ROWS):
                    T.buffer_store(position, near[row], [place + row])

    def _step(
        self, group: ChannelGroup, start: tirx.Expr, position: tirx.Var, factor: tirx.Expr | None, ends: bool
    ) -> None:
        """8 columns of 4 rows."""
        rows = []
        for row in range(ROWS):
            first = (group.channel + row) * self.values + start
            mask, zeros = self.decoder.decode(first, position[row], ends)
            T.buffer_store(position, position[row] + zeros, [row])
            rows.append(T.bind(self.weight[T.ramp(first, 1, LANES)] * mask))
        for value, vector in enumerate(_transposed(rows)):
            self.store.store(start, group, value, vector if factor is None else vector * factor)


def _transposed(rows: list[tirx.Expr]) -> list[tirx.Expr]:
    """8 vectors of 4 channels, of 4 rows of 8 values: `trn1` and `trn2`, by values and then by pairs."""

    def turned(pair: list[tirx.Expr], indices: tuple[int, ...]) -> tirx.Expr:
        return T.bind(T.Shuffle(pair, [T.int32(index) for index in indices]))

    vectors = []
    for half in (0, ROWS):
        even, odd = (
            [turned(rows[row : row + 2], (first, LANES + first, first + 2, LANES + first + 2)) for row in (0, 2)]
            for first in (half, half + 1)
        )
        for indices in ((0, 1, 4, 5), (2, 3, 6, 7)):
            vectors += [turned(even, indices), turned(odd, indices)]
    return vectors
