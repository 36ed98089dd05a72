"""Loops in vectors of which the last is shorter: 24 values are one vector of 16 and one of 8, and not three of 8.

No primitive of TVM's schedules does it: a loop that is cut in two parts is two blocks, which are no reduction any more,
and what is no reduction takes no vectors. So a schedule marks the loop with `in_unequal_vectors`, and here it is cut.
"""

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

_ANNOTATION = "unequal_vectors"


def in_unequal_vectors(schedule: Schedule, loop: LoopRV, width: int) -> None:
    """Has an innermost loop done in vectors of `width` values, written one behind the other, and one of what is left.

    Args:
        schedule: of a function for a CPU.
        loop: of more values than `width`, no multiple of it.
        width: a power of two.
    """
    schedule.annotate(loop, _ANNOTATION, width)


@prim_func_pass(opt_level=0, name="UnequalVectors")
class UnequalVectors:
    """Cuts the marked loops of scheduled functions that are not lowered yet."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such loop."""
        return func.with_body(structural_map(func.body, (tirx.For, _cut)))


def _cut(loop: tirx.For) -> tirx.For | tirx.SeqStmt:
    if _ANNOTATION not in loop.annotations:
        return loop
    width, length = int(loop.annotations[_ANNOTATION]), int(loop.extent)
    starts = range(0, length, width)
    return tirx.SeqStmt([_vector(loop, start, min(width, length - start)) for start in starts])


def _vector(loop: tirx.For, start: int, width: int) -> tirx.For:
    """The values of a loop from `start` on as one vector."""
    dtype = loop.loop_var.ty.dtype
    lane = tirx.Var("lane", dtype)
    value = loop.min + tirx.const(start, dtype) + lane
    body = structural_map(
        loop.body, (tirx.Var, lambda variable: value if variable.same_as(loop.loop_var) else variable)
    )
    return tirx.For(lane, tirx.const(0, dtype), tirx.const(width, dtype), tirx.ForKind.VECTORIZED, body)
