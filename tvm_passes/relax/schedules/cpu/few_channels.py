"""Convolutions of images: their three channels are no vector, but what a few neighbouring pixels read of a row is one.

Where a CPU multiplies by one value of a register, the inputs of a tile are to be loaded in vectors. All values of a row
of the input that a few neighbours in a row of the output read lie together, channels innermost: a step of the
reduction over rows loads them once, and multiplies by whichever lanes it needs. A tile stays in its row for that.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION
from tvm_passes.relax.schedules.base.blocks import FusedOperator, extent, extents, widest_vector
from tvm_passes.relax.schedules.base.convolution_match import input_shape, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.cpu.convolution import schedule_surroundings
from tvm_passes.relax.schedules.cpu.lanes import steps_at_once
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

# Pixels of a tile: of fewer a vector of the row holds too little that is multiplied.
_FEWEST_PIXELS, _MOST_PIXELS = 4, 8
_MOST_STEPS = 32  # Of the reduction that are written out, for each row of the window.


@dataclass(frozen=True)
class RowTile:
    """One way to compute such a convolution.

    Attributes:
        pixels, channels: of a tile of the output, which is held in registers: neighbours in a row × packed channels.
    """

    pixels: int
    channels: int


class FewChannels(DesignSpaceRule[FusedOperator, RowTile]):
    """Matches an NHWC convolution with packed weights whose input channels are no vector, on a CPU that needs one."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched, unit = match_convolution(func, target), vector_unit(target)
        if matched is None or not unit.by_lane:
            return None
        schedule, operator = matched
        *_, columns, inputs = extents(schedule, operator.reduction)
        fits = (
            ANNOTATION in schedule.get(operator.reduction).annotations
            and input_shape(schedule, operator)[3] == inputs
            and steps_at_once(schedule, operator.reduction, unit) == 1
            and columns * inputs <= _MOST_STEPS
        )
        return matched if fits else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[RowTile]:
        """Tiles that divide a row, the largest first; half of the registers hold one, the others inputs and weights."""
        unit, width = vector_unit(target), extents(schedule, operator.reduction)[2]
        channels = int(schedule.get(operator.reduction).annotations[ANNOTATION])
        vectors = channels // widest_vector(channels, unit.lanes(widest_type(schedule, operator.reduction)))
        most = min(_MOST_PIXELS, unit.registers // 2 // vectors)
        return [RowTile(pixels, channels) for pixels in range(most, _FEWEST_PIXELS - 1, -1) if width % pixels == 0]

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: RowTile, target: Target) -> None:
        """Computes row by row, each a task, and tile by tile."""
        unit = vector_unit(target)
        lanes = unit.lanes(widest_type(schedule, operator.reduction))
        schedule_surroundings(schedule, operator, unit)
        row = schedule.cache_read(operator.reduction, 0, "local")
        n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
        channel_tiles, channels = schedule.split(o, [None, way.channels])
        tiles, pixels = schedule.split(x, [None, way.pixels])
        schedule.reorder(n, y, channel_tiles, tiles, ky, kx, i, pixels, channels)
        schedule.parallel(schedule.fuse(n, y))
        schedule.reverse_compute_at(operator.output, tiles, preserve_unit_loops=True)
        schedule.compute_at(row, ky, preserve_unit_loops=True)
        _read_in_vectors(schedule, row, lanes)
        for block in (operator.reduction, operator.output):
            *_, pixel, channel = schedule.get_loops(block)
            vectors, vector = schedule.split(channel, [None, widest_vector(way.channels, lanes)])
            schedule.vectorize(vector)
            schedule.unroll(vectors)
            schedule.unroll(pixel)
        schedule.unroll(kx)
        schedule.unroll(i)
        schedule.decompose_reduction(operator.reduction, ky)


def _read_in_vectors(schedule: Schedule, row: SBlockRV, lanes: int) -> None:
    """Reads pixels and channels of a row as if they were one axis, those that fill no vector one by one."""
    *_, pixels, channels = schedule.get_loops(row)
    values = schedule.fuse(pixels, channels)
    if rest := extent(schedule, values) % lanes:
        values, single = schedule.loop_partition(values, [extent(schedule, values) - rest, None])
        schedule.unroll(single)
    vectors, vector = schedule.split(values, [None, lanes])
    schedule.vectorize(vector)
    schedule.unroll(vectors)
