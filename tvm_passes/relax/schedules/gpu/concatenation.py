"""Concatenation along the channels, alone or with elementwise operators behind it (DenseNet, ShuffleNet).

TVM writes it as one loop that asks for every element which input it comes from. A vector must not span the border of
two inputs: then a thread asks once.
"""

import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, inline_maps, static_schedule
from tvm_passes.relax.schedules.base.concatenation_match import input_starts
from tvm_passes.relax.schedules.gpu.elementwise import VECTOR, bind_elementwise
from tvm_passes.relax.schedules.gpu.limits import gpu_limits


class Concatenation(ScheduleRule):
    """Matches one concatenation along the last axis."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it does not concatenate along the last axis or a shape is not known."""
        schedule = static_schedule(func, target, device="gpu")
        if schedule is None:
            return None
        blocks = inline_maps(schedule)
        if len(blocks) != 1 or set(axis_kinds(schedule, blocks[0])) != {"S"}:
            return None
        starts = input_starts(schedule, blocks[0])
        if not starts:
            return None
        bind_elementwise(schedule, blocks[0], gpu_limits(target), math.gcd(VECTOR, *starts))
        return schedule
