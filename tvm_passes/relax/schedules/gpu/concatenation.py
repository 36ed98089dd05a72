"""Concatenation along the channels, alone or with elementwise operators behind it (DenseNet, ShuffleNet).

A vector must not span the border of two inputs: then a thread asks once.
"""

import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.concatenation_match import match_concatenation
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise
from tvm_passes.relax.schedules.gpu.limits import gpu_limits


class Concatenation(ScheduleRule):
    """Matches one concatenation along the last axis."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it does not concatenate along the last axis or a shape is not known."""
        matched = match_concatenation(func, target, device="gpu")
        if matched is None:
            return None
        schedule, block, starts = matched
        bind_elementwise(schedule, block, gpu_limits(target), math.gcd(*starts))
        return schedule
