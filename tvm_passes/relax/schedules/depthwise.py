"""Depthwise convolutions in NHWC with HWIO weights of shape [kH, kW, 1, C].

Vectors run over channels. A row of neighbouring output pixels is computed at once, so that the window's overlap is
loaded once.
"""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import (
    extents,
    fused_operator,
    largest_divisor,
    static_schedule,
)
from tvm_passes.relax.schedules.convolution import is_convolution, schedule_surroundings
from tvm_passes.relax.schedules.vector_unit import vector_unit


class DepthwiseConvolution(ScheduleRule):
    """Matches an NHWC convolution in which each output channel reads the input channel of the same number."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it is no depthwise convolution of a known shape."""
        schedule = static_schedule(func, target, "SSSSRRR")
        if schedule is None:
            return None
        operator = fused_operator(schedule)
        if operator is None or not is_convolution(schedule, operator.reduction):
            return None
        width, channels, *_window, depth = extents(schedule, operator.reduction)[2:]
        data = schedule.get(operator.reduction).reads[0].source
        if depth != 1 or channels == 1 or int(data.shape[3]) != channels:
            return None
        unit = vector_unit(target)
        schedule_surroundings(schedule, operator, unit)
        n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
        # Half of the registers hold results, the others inputs and weights.
        outer_pixels, inner_pixels = schedule.split(x, [None, largest_divisor(width, unit.registers // 2)])
        vectors, vector = schedule.split(o, [None, largest_divisor(channels, unit.lanes)])
        schedule.reorder(n, y, outer_pixels, vectors, i, ky, kx, inner_pixels, vector)
        schedule.reverse_compute_at(operator.output, vectors, preserve_unit_loops=True)
        schedule.parallel(schedule.fuse(n, y))
        schedule.vectorize(vector)
        schedule.unroll(inner_pixels)
        schedule.unroll(kx)
        schedule.vectorize(schedule.get_loops(operator.output)[-1])
        schedule.decompose_reduction(operator.reduction, i)
        return schedule
