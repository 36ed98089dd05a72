"""Divisions by a number: which become products, and that they compute the same."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tvm_passes.relax.multiply_by_reciprocals import MultiplyByReciprocals

A_VALUE = relax.Var("by", relax.TensorType((), "float32"))


def divided_by(divisor, dtype="float32"):
    """A module whose `main` divides a vector."""
    builder = relax.BlockBuilder()
    data = relax.Var("data", relax.TensorType((1024,), dtype))
    others = [divisor] if isinstance(divisor, relax.Var) else []
    with builder.function("main", [data, *others]):
        value = divisor if others else relax.const(divisor, dtype)
        builder.emit_func_output(builder.emit(relax.op.divide(data, value)))
    return builder.get()


def operators_of(module):
    found = []
    relax.analysis.post_order_visit(
        module["main"], lambda one: found.append(one.op.name) if isinstance(one, relax.Call) else None
    )
    return found


def test_a_division_by_six_is_a_product_and_rounds_once_more():
    module = MultiplyByReciprocals()(divided_by(6.0))
    assert operators_of(module) == ["relax.multiply"]
    data = np.random.default_rng(0).standard_normal(1024, np.float32)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(data)).numpy()
    np.testing.assert_allclose(found, data / np.float32(6), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("divisor", [0.0, np.inf, np.nan, 1e-40, 3e38, A_VALUE])
def test_what_has_no_reciprocal_of_full_precision_is_divided_by(divisor):
    assert operators_of(MultiplyByReciprocals()(divided_by(divisor))) == ["relax.divide"]


@pytest.mark.parametrize("dtype", ["int32", "float16", "float64"])
def test_other_types_are_divided(dtype):
    assert operators_of(MultiplyByReciprocals()(divided_by(6, dtype))) == ["relax.divide"]
