"""Divisions by a constant become products with its reciprocal.

In:  a Relax module in which `divide` has a number for a divisor, as Hardswish and Hardsigmoid have 6.
Out: the same module, `multiply` by the number's reciprocal instead: one rounding more, a relative difference of 1.2e-7
     at most. A core with AVX-512 divides 16 values in 16 cycles, and multiplies 32 in one.
"""

import math

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.activations import scalar_constant


@tvm.transform.module_pass(opt_level=0, name="MultiplyByReciprocals")
class MultiplyByReciprocals:
    """Replaces divisions of float32 by numbers whose reciprocal is one that float32 has at full precision."""

    def transform_module(self, module: IRModule, _: PassContext) -> IRModule:
        """The module with such divisions of every Relax function replaced."""
        replacer = _Replacer(module)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                replacer.builder_.update_func(name, replacer.visit_expr(function))
        return replacer.builder_.get()


@mutator
class _Replacer(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.divide") or call.ty.dtype != "float32":
            return call
        divisor = scalar_constant(call.args[1])
        if divisor is None or not _has_reciprocal(divisor):
            return call
        return relax.op.multiply(call.args[0], relax.const(1 / divisor, "float32"))


def _has_reciprocal(number: float) -> bool:
    """Whether it and its reciprocal are normal numbers of float32."""
    smallest, largest = 2.0**-126, 2.0**126
    return math.isfinite(number) and smallest <= abs(number) <= largest
