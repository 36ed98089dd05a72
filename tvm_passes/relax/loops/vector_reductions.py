"""Reductions along memory in vectors: partial results, as many as a vector has values, and the result of these.

A sum of a row is a chain of dependent additions, and LLVM must not change their order. A schedule marks the innermost
loop of a reduction with `in_partial_results`, and here it becomes vectors. What is left behind the last whole one is
added value by value. TVM's `rfactor` does the same where vectors divide the row; where they do not, `compute_at` loses
its condition, and values behind the row are added too.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import tvm
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.ir.transform import PassContext
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

_ANNOTATION = "partial_results"
_Part = TypeVar("_Part", tirx.Stmt, tirx.Expr)


def is_commutative(block: SBlock) -> bool:
    """Whether a block reduces to one sum, maximum or minimum, whose terms may be taken in any order."""
    body = block.body
    if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, (tirx.Add, tirx.Max, tirx.Min)):
        return False
    so_far = body.value.a
    return isinstance(so_far, TensorLoad) and so_far.source.same_as(body.buffer)


def in_partial_results(schedule: Schedule, loop: LoopRV, width: int) -> None:
    """Has an innermost loop, which is all of a reduction, done in vectors.

    Args:
        schedule: of a function for a CPU.
        loop: of at least `width` steps, around a block that `is_commutative`, whose first step sets the result.
        width: values of a vector, a power of two.
    """
    schedule.annotate(loop, _ANNOTATION, width)


@prim_func_pass(opt_level=0, name="VectorReductions")
class VectorReductions:
    """Writes the marked loops of scheduled functions that are not lowered yet."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such loop."""
        return func.with_body(structural_map(func.body, (tirx.For, _reduced)))


def _reduced(loop: tirx.For) -> tirx.For | tirx.SeqStmt:
    if _ANNOTATION not in loop.annotations:
        return loop
    realize = loop.body
    assert isinstance(realize, SBlockRealize)
    values = dict(zip((axis.var for axis in realize.block.iter_vars), realize.iter_values, strict=True))
    update, first = (_with_values(one, values) for one in (realize.block.body, realize.block.init))
    width, length, dtype = int(loop.annotations[_ANNOTATION]), int(loop.extent), loop.loop_var.ty.dtype
    combine, of_step = type(update.value), update.value.b
    result, indices = update.buffer, list(update.indices)
    partial = tirx.decl_buffer((width,), result.dtype, "partial", scope="local")

    def step(number: tirx.Expr) -> tirx.Expr:
        return _with_values(of_step, {loop.loop_var: loop.min + number})

    def in_vector(count: int, value: Callable[[tirx.Var], tirx.Expr]) -> tirx.For:
        lane = tirx.Var("lane", dtype)
        return _loop(lane, count, tirx.BufferStore(partial, value(lane), [lane]), tirx.ForKind.VECTORIZED)

    def partial_result(lane: tirx.Var) -> tirx.Expr:
        return combine(partial[lane], step(vector * width + lane))

    def halves_of(half: int) -> Callable[[tirx.Var], tirx.Expr]:
        return lambda lane: combine(partial[lane], partial[lane + half])

    vector, left = tirx.Var("vector", dtype), tirx.Var("left", dtype)
    statements = [
        in_vector(width, lambda _: first.value),
        _loop(vector, length // width, in_vector(width, partial_result)),
    ]
    statements += [
        in_vector(half, halves_of(half)) for half in (width >> bits for bits in range(1, width.bit_length()))
    ]
    statements.append(tirx.BufferStore(result, partial[0], indices))
    if rest := length % width:
        with_left = combine(result[tuple(indices)], step(left + (length - rest)))
        statements.append(_loop(left, rest, tirx.BufferStore(result, with_left, indices)))
    return tirx.SeqStmt([tirx.AllocBuffer(partial), *statements])


def _with_values(part: _Part, values: Mapping[tirx.Var, tirx.Expr]) -> _Part:
    """A statement or an expression with values for some of its variables."""
    return structural_map(part, (tirx.Var, lambda variable: values.get(variable, variable)))


def _loop(variable: tirx.Var, count: int, body: tirx.Stmt, kind: int = tirx.ForKind.SERIAL) -> tirx.For:
    dtype = variable.ty.dtype
    return tirx.For(variable, tirx.const(0, dtype), tirx.const(count, dtype), kind, body)
