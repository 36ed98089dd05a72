"""Reductions over space in NHWC, such as max, average and global pooling: vectors run over channels."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import (
    axis_kinds,
    blocks_of,
    extents,
    fused_operator,
    largest_divisor,
    schedule_elementwise,
    static_schedule,
    widest_vector,
)
from tvm_passes.relax.schedules.vector_unit import vector_unit


class Pooling(ScheduleRule):
    """Matches a reduction over the window or the whole of a map, whose last spatial axis is the channel."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it holds not exactly one reduction with constant-shaped windows."""
        if target.kind.name != "llvm" or (schedule := static_schedule(func)) is None:
            return None
        operator = fused_operator(schedule, "SSSSRR")
        if operator is None or operator.followers:
            return None
        statement = schedule.get(operator.reduction)
        channel = statement.iter_vars[3].var
        if len(statement.reads) != 1 or not statement.reads[0].region[-1].min.same_as(channel):
            return None
        if axis_kinds(schedule, operator.output) != "SSSS":
            return None
        unit = vector_unit(target)
        for block in operator.producers:
            schedule_elementwise(schedule, block, unit.lanes)
        channels = extents(schedule, operator.reduction)[3]
        n, y, x, c, ky, kx = schedule.get_loops(operator.reduction)
        width = widest_vector(channels, 2 * unit.lanes)
        vectors, vector = schedule.split(c, [None, width])
        group, member = schedule.split(vectors, [None, largest_divisor(channels // width, 4)])
        schedule.reorder(n, y, x, group, ky, kx, member, vector)
        task = schedule.fuse(n, y, x, group)
        schedule.reverse_compute_at(operator.output, task, preserve_unit_loops=True)
        schedule.parallel(task)
        schedule.vectorize(vector)
        _, output_vector = schedule.split(schedule.get_loops(operator.output)[-1], [None, width])
        schedule.vectorize(output_vector)
        schedule.decompose_reduction(operator.reduction, ky)
        return schedule


__all__ = ["Pooling", "blocks_of"]
