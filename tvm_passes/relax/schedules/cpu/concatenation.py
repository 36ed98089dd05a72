"""Concatenation along the channels, alone or with elementwise operators behind it (DenseNet, ShuffleNet).

The loop over the channels is cut where an input ends, so that nothing is left to ask.
"""

import itertools

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.concatenation_match import match_concatenation


class Concatenation(ScheduleRule):
    """Matches one concatenation along the last axis of an output of rank 3 or more."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it does not concatenate along the last axis or a shape is not known."""
        matched = match_concatenation(func, target)
        if matched is None:
            return None
        schedule, block, starts = matched
        *outer, channels = schedule.get_loops(block)
        if len(outer) < 2:
            return None
        rows = schedule.fuse(*outer[:-1])
        lengths = [end - start for start, end in itertools.pairwise(starts)]
        schedule.loop_partition(channels, [*lengths, None])
        schedule.parallel(rows)
        return schedule
