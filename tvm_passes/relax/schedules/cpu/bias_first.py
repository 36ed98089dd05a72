"""Sums that begin with what would be added to them: an addition less for each value of a convolution with a bias."""

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.schedule import SBlockRV


def begin_with_bias(schedule: Schedule, start: SBlockRV, output: SBlockRV) -> None:
    """Moves the first addition to sums, if that is of a value that is read, from behind the sums to their start.

    Args:
        schedule: of the operator, finished but for this.
        start: sets the sums to 0, as `decompose_reduction` gives it.
        output: reads each sum once, over the same axes.
    """
    zeros, results = schedule.get(start), schedule.get(output)
    sums = zeros.body.buffer
    bias: list[TensorLoad] = []

    def without(addition: tirx.Add) -> tirx.Expr:
        for one, other in ((addition.a, addition.b), (addition.b, addition.a)):
            if _reads(one, sums) and isinstance(other, TensorLoad) and not _reads(other, sums):
                bias.append(other)
                return one
        return addition

    written = tvm_ffi.structural_map(results.body, (tirx.Add, without))
    if len(bias) != 1:
        return
    axes = dict(zip((axis.var for axis in results.iter_vars), (axis.var for axis in zeros.iter_vars), strict=True))
    first = tvm_ffi.structural_map(bias[0], (tirx.Var, lambda axis: axes.get(axis, axis)))
    _replace(schedule, start, zeros, tirx.BufferStore(sums, first, zeros.body.indices))
    _replace(schedule, output, results, written)


def _replace(schedule: Schedule, block: SBlockRV, statement: SBlock, body: tirx.Stmt) -> None:
    replaced = SBlock(
        statement.iter_vars,
        statement.reads,
        statement.writes,
        statement.name_hint,
        body,
        annotations=statement.annotations,
    )
    schedule.state.replace(schedule.get_sref(block), replaced, {statement: replaced})


def _reads(value: tirx.Expr, buffer: tirx.Buffer) -> bool:
    return isinstance(value, TensorLoad) and value.source.same_as(buffer)
