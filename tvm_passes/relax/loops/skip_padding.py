"""Leaves padding out of sums and maxima: `sum + (x if inside else 0) * w` becomes `if inside: sum + x * w`.

A schedule that inlines padding into a reduction gets the first. Asked once around a row of the kernel, and for the
first and last pixels of a row only, the condition costs less than a copy of the map with its padding.
"""

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_equal, structural_map


@prim_func_pass(opt_level=0, name="SkipPadding")
class SkipPadding:
    """Rewrites such sums in scheduled functions that are not lowered yet."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such sum, or is for a GPU, whose threads reduce one sum together."""
        target = func.attrs.get("target") if func.attrs else None
        if target is not None and "gpu" in target.keys:
            return func
        return func.with_body(structural_map(func.body, (tirx.BufferStore, _inside)))


def _inside(store: tirx.BufferStore) -> tirx.Stmt:
    found = _without_padding(store.value)
    if found is None:
        return store
    condition, value = found
    body: tirx.Stmt = tirx.BufferStore(store.buffer, value, store.indices)
    # Each on its own, so that a loop is left by those that it does not change.
    for part in reversed(_conjuncts(condition)):
        body = tirx.IfThenElse(part, body, None)
    return body


def _without_padding(total: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr] | None:
    """Where a step of a sum or maximum has to do with no padding, and the step there; None of others."""
    if isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul):
        padded = _padded(total.b.a, 0)
        return None if padded is None else (padded[0], total.a + padded[1] * total.b.b)
    if isinstance(total, tirx.Max):
        padded = _padded(total.b, _LEAST)
        return None if padded is None else (padded[0], tirx.max(total.a, padded[1]))
    return None


def _padded(value: tirx.Expr, neutral: float) -> tuple[tirx.Expr, tirx.Expr] | None:
    """Where a value is no padding, which is a constant of float, and what it is there; None of one without padding."""
    if isinstance(value, tvm.ir.Call) and value.op.same_as(_IF_THEN_ELSE):
        condition, inside, padding = value.args
        is_neutral = isinstance(padding, tirx.FloatImm) and float(padding.value) == neutral
        return (condition, inside) if is_neutral else None
    if isinstance(value, tirx.Select):
        first, other = _padded(value.true_value, neutral), _padded(value.false_value, neutral)
        if first is not None and other is not None and structural_equal(first[0], other[0]):
            return first[0], tirx.Select(value.condition, first[1], other[1])
    return None


_IF_THEN_ELSE = tvm.ir.Op.get("prim.if_then_else")
_LEAST = float(tirx.min_value("float32").value)
"""What a maximum begins with."""


def _conjuncts(condition: tirx.Expr) -> list[tirx.Expr]:
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]
