"""Reductions over pixels in NHWC: max, average, adaptive and global pooling. Vectors run over the channels."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, extent, largest_divisor, match_reduction
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit


class PixelReduction(ScheduleRule):
    """Matches one reduction whose result and whose only input have the same innermost axis, the channels."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it holds no such reduction of a known shape."""
        matched = match_reduction(func, target, "S+R+")
        if matched is None:
            return None
        schedule, operator = matched
        kinds = axis_kinds(schedule, operator.reduction)
        statement = schedule.get(operator.reduction)
        channel = statement.iter_vars[kinds.count("S") - 1].var
        if len(statement.reads) != 1 or not statement.reads[0].region[-1].min.same_as(channel):
            return None
        unit = vector_unit(target)
        for block in operator.followers:
            schedule_elementwise(schedule, block, unit)
        in_floats = widest_type(schedule, operator.reduction).startswith("float")
        for block in operator.producers:
            # A branch that `SkipPadding` makes takes less than a copy of a large map: measured on x86-64 alone.
            if unit.by_lane or not in_floats:
                schedule_elementwise(schedule, block, unit)
            else:
                schedule.compute_inline(block)
        loops = schedule.get_loops(operator.reduction)
        *pixels, channels = loops[: kinds.count("S")]
        window = loops[kinds.count("S") :]
        lanes = unit.lanes(widest_type(schedule, operator.reduction))
        width = largest_divisor(extent(schedule, channels), 2 * lanes)
        vectors, vector = schedule.split(channels, [None, width])
        groups, member = schedule.split(vectors, [None, largest_divisor(extent(schedule, vectors), 4)])
        schedule.reorder(*pixels, groups, *window, member, vector)
        task = schedule.fuse(*pixels, groups)
        schedule.reverse_compute_at(operator.output, task, preserve_unit_loops=True)
        schedule.parallel(task)
        schedule.vectorize(vector)
        *_, output_channels = schedule.get_loops(operator.output)
        _, output_vector = schedule.split(output_channels, [None, width])
        schedule.vectorize(output_vector)
        schedule.decompose_reduction(operator.reduction, window[0])
        return schedule
