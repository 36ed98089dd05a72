"""SinkReshapes: activations come before changes of shape, so that they are fused behind the product before them.

In:  a Relax module. A linear layer over [B…, N, I] comes as a product [B…·N, I] × [I, O] between two changes of shape.
Out: the same module; an activation of a reshaped tensor is the reshaped activation of the tensor, and of two changes of
     shape in a row only the second is left, or none where it leads back.
"""

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm_ffi import structural_equal

_ACTIVATIONS = {
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("nn.gelu", "nn.gelu_tanh", "nn.relu", "nn.silu", "sigmoid", "tanh", "clip")
}
_RESHAPE = tvm.ir.Op.get("relax.reshape")


@tvm.transform.module_pass(opt_level=0, name="SinkReshapes")
class SinkReshapes:
    """Moves changes of shape behind activations."""

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """The module with every Relax function rewritten."""
        rewriter = _Rewriter(module)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(name, rewriter.visit_expr(function))
        return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        before = self._reshape(call.args[0]) if call.args else None
        if before is None:
            return call
        source = before.args[0]
        if call.op == _RESHAPE:
            same = structural_equal(source.ty.shape, call.args[1])
            return source if same else relax.op.reshape(source, call.args[1])
        if call.op in _ACTIVATIONS:
            activated = self.builder_.emit(relax.Call(call.op, [source, *call.args[1:]], call.attrs))
            return relax.op.reshape(activated, before.args[1])
        return call

    def _reshape(self, value: relax.Expr) -> relax.Call | None:
        """The change of shape that a value is bound to, with a shape that is known."""
        bound = self.lookup_binding(value) if isinstance(value, relax.Var) else None
        if not isinstance(bound, relax.Call) or bound.op != _RESHAPE:
            return None
        return bound if isinstance(bound.args[1], relax.ShapeExpr) else None
