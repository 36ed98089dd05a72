"""Leaves out of a sum what is multiplied by padding: `sum + (x if inside else 0) * w` becomes `if inside: sum + x * w`.

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
    if not isinstance(store.value, tirx.Add) or not isinstance(store.value.b, tirx.Mul):
        return store
    total, product = store.value.a, store.value.b
    padded = _padded(product.a)
    if padded is None:
        return store
    condition, value = padded
    body: tirx.Stmt = tirx.BufferStore(store.buffer, total + value * product.b, store.indices)
    # Each on its own, so that a loop is left by those that it does not change.
    for part in reversed(_conjuncts(condition)):
        body = tirx.IfThenElse(part, body, None)
    return body


def _padded(value: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr] | None:
    """Where a value is no padding, and what it is there; None of a value that is never padding."""
    if isinstance(value, tvm.ir.Call) and value.op.same_as(_IF_THEN_ELSE) and _is_zero(value.args[2]):
        condition, inside, _ = value.args
        return condition, inside
    if isinstance(value, tirx.Select):
        first, other = _padded(value.true_value), _padded(value.false_value)
        if first is not None and other is not None and structural_equal(first[0], other[0]):
            return first[0], tirx.Select(value.condition, first[1], other[1])
    return None


_IF_THEN_ELSE = tvm.ir.Op.get("prim.if_then_else")


def _is_zero(value: tirx.Expr) -> bool:
    return isinstance(value, tirx.FloatImm) and float(value.value) == 0


def _conjuncts(condition: tirx.Expr) -> list[tirx.Expr]:
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]
