"""Concatenation along the channels, alone or with elementwise operators behind it (DenseNet, ShuffleNet).

TVM writes it as one loop that asks for every element which input it comes from. Here the loop over the channels is cut
where an input ends, so that nothing is left to ask.
"""

import itertools

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, extents, inline_maps, static_schedule
from tvm_passes.relax.schedules.base.concatenation_match import input_starts


class Concatenation(ScheduleRule):
    """Matches one concatenation along the last axis of an output of rank 3 or more."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it does not concatenate along the last axis or a shape is not known."""
        schedule = static_schedule(func, target)
        if schedule is None:
            return None
        blocks = inline_maps(schedule)
        if len(blocks) != 1 or set(axis_kinds(schedule, blocks[0])) != {"S"}:
            return None
        rank, starts = len(extents(schedule, blocks[0])), input_starts(schedule, blocks[0])
        if rank < 3 or not starts:
            return None
        *outer, _, channels = schedule.get_loops(blocks[0])
        rows = schedule.fuse(*outer)
        lengths = [end - start for start, end in itertools.pairwise(starts)]
        schedule.loop_partition(channels, [*lengths, None])
        schedule.parallel(rows)
        return schedule
