"""Depthwise convolutions in NHWC with HWIO weights of shape [kH, kW, 1, C].

Vectors run over channels. A row of neighbouring output pixels is computed at once, so that the window's overlap is
loaded once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import (
    FusedOperator,
    extents,
    fused_operator,
    largest_divisor,
    static_schedule,
)
from tvm_passes.relax.schedules.convolution import is_convolution, schedule_surroundings
from tvm_passes.relax.schedules.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.vector_unit import VectorUnit, vector_unit


@dataclass(frozen=True)
class Row:
    """One way to compute a depthwise convolution: neighbouring pixels × the channels of a vector, in registers."""

    pixels: int
    channels: int


class DepthwiseConvolution(DesignSpaceRule):
    """Matches an NHWC convolution in which each output channel reads the input channel of the same number."""

    def candidates(self, func: tirx.PrimFunc, target: Target) -> Iterator[Schedule]:
        """The convolution with each of `rows`."""
        matched = _match(func, target)
        if matched is None:
            return
        unit = vector_unit(target)
        width, channels, *_ = extents(matched[0], matched[1].reduction)[2:]
        for row in rows(width, channels, unit):
            # Each candidate is made from a schedule of its own.
            schedule, operator = _match(func, target) or matched
            schedule_surroundings(schedule, operator, unit)
            _compute_rows(schedule, operator, row)
            yield schedule


def _match(func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
    schedule = static_schedule(func, target, "SSSSRRR")
    operator = fused_operator(schedule) if schedule is not None else None
    if schedule is None or operator is None or not is_convolution(schedule, operator.reduction):
        return None
    channels, *_window, depth = extents(schedule, operator.reduction)[3:]
    data = schedule.get(operator.reduction).reads[0].source
    if depth != 1 or channels == 1 or int(data.shape[3]) != channels:
        return None
    return schedule, operator


def rows(width: int, channels: int, unit: VectorUnit) -> list[Row]:
    """The ways to compute a depthwise convolution that are worth a measurement, the likely fastest first."""
    # Half of the registers hold results, the others inputs and weights.
    pixels = [largest_divisor(width, limit) for limit in (unit.registers // 2, unit.registers // 4, 4, 2, 1, width)]
    lanes = [largest_divisor(channels, limit) for limit in (unit.lanes, 2 * unit.lanes, 4 * unit.lanes)]
    return list(dict.fromkeys(Row(pixel, lane) for lane in lanes for pixel in pixels if pixel <= unit.registers))


def _compute_rows(schedule: Schedule, operator: FusedOperator, row: Row) -> None:
    n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
    outer_pixels, inner_pixels = schedule.split(x, [None, row.pixels])
    vectors, vector = schedule.split(o, [None, row.channels])
    schedule.reorder(n, y, outer_pixels, vectors, i, ky, kx, inner_pixels, vector)
    schedule.reverse_compute_at(operator.output, vectors, preserve_unit_loops=True)
    schedule.parallel(schedule.fuse(n, y))
    schedule.vectorize(vector)
    schedule.unroll(inner_pixels)
    schedule.unroll(kx)
    schedule.vectorize(schedule.get_loops(operator.output)[-1])
    schedule.decompose_reduction(operator.reduction, i)
