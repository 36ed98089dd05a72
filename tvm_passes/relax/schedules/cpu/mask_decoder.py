"""Decoders of packed masks, whose rows are independent and each a loop of its own (`FoldTaskMask`)."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import blocks_of, static_schedule


class MaskDecoder(ScheduleRule):
    """Matches one block of spatial axes that holds loops of its own: what is no single store cannot be a vector."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it is of another form."""
        schedule = static_schedule(func, target)
        if schedule is None:
            return None
        blocks = blocks_of(schedule)
        if len(blocks) != 1 or isinstance(schedule.get(blocks[0]).body, tirx.BufferStore):
            return None
        schedule.parallel(schedule.fuse(*schedule.get_loops(blocks[0])))
        return schedule
