"""Everything without a rule of its own: elementwise operators, transposes, weight rewrites, softmax."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, inline_maps, static_schedule
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit


class Fallback(ScheduleRule):
    """Matches every function of known shape: spatial axes run in parallel, blocks without reduction in vectors."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if a shape is not known."""
        schedule = static_schedule(func, target)
        if schedule is None:
            return None
        unit = vector_unit(target)
        for block in inline_maps(schedule):
            kinds = axis_kinds(schedule, block)
            if set(kinds) == {"S"}:
                schedule_elementwise(schedule, block, unit)
            elif kinds.startswith("S"):
                spatial = len(kinds) - len(kinds.lstrip("S"))
                schedule.parallel(schedule.fuse(*schedule.get_loops(block)[:spatial]))
        return schedule
