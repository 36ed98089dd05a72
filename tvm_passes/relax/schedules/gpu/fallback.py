"""Everything without a rule of its own: elementwise operators, transposes, weight rewrites, softmax, mask decoders."""

import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, extents, inline_maps, static_schedule
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise, bind_flat
from tvm_passes.relax.schedules.gpu.limits import gpu_limits


class Fallback(ScheduleRule):
    """Matches every function of known shape: spatial axes are bound to threads, each runs its reductions alone."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if a shape is not known."""
        schedule = static_schedule(func, target, device="gpu")
        if schedule is None:
            return None
        limits = gpu_limits(target)
        for block in inline_maps(schedule):
            kinds = axis_kinds(schedule, block)
            if set(kinds) <= {"S"}:
                bind_elementwise(schedule, block, limits)
                continue
            spatial = len(kinds) - len(kinds.lstrip("S"))
            loops = schedule.get_loops(block)
            outer = loops[:spatial] or [schedule.add_unit_loop(loops[0])]
            bind_flat(schedule, outer, math.prod(extents(schedule, block)[:spatial]), limits)
        return schedule
