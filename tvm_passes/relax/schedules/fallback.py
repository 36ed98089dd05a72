"""Everything without a rule of its own: elementwise operators, transposes, concatenations, weight rewrites, reductions."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import axis_kinds, blocks_of, schedule_elementwise, static_schedule
from tvm_passes.relax.schedules.vector_unit import vector_unit


class Fallback(ScheduleRule):
    """Matches every function of known shape: spatial axes run in parallel, elementwise blocks in vectors."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if a shape is not known."""
        if target.kind.name != "llvm" or (schedule := static_schedule(func)) is None:
            return None
        unit = vector_unit(target)
        blocks = blocks_of(schedule)
        for block in blocks[:-1]:
            if set(axis_kinds(schedule, block)) <= {"S"}:
                try:
                    schedule.compute_inline(block)
                except Exception:
                    pass
        for block in blocks_of(schedule):
            kinds = axis_kinds(schedule, block)
            if not kinds:
                continue
            if set(kinds) == {"S"}:
                schedule_elementwise(schedule, block, unit.lanes)
            elif kinds[0] == "S":
                spatial = len(kinds) - len(kinds.lstrip("S"))
                schedule.parallel(schedule.fuse(*schedule.get_loops(block)[:spatial]))
        return schedule
