"""Folds explicit zero padding into the convolution behind it.

In:  a Relax module in which `nn.pad` with constant 0, over the spatial axes only, feeds `nn.conv2d`. TensorFlow-style
     networks such as EfficientNet-Lite come so, because their padding is asymmetric.
Out: the same module, the padding moved into the convolution's `padding` attribute (top, left, bottom, right). An
     `nn.pad` that nothing else reads is removed.
"""

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator


@tvm.transform.module_pass(opt_level=0, name="FoldPadding")
class FoldPadding:
    """Moves constant-zero `nn.pad` into the `padding` of NCHW or NHWC `nn.conv2d`."""

    def transform_module(self, mod: IRModule, _: PassContext) -> IRModule:
        """The module with the padding of every Relax function folded."""
        folder = _PaddingFolder(mod)
        for name, function in mod.functions_items():
            if isinstance(function, relax.Function):
                folder.builder_.update_func(name, folder.visit_expr(function))
        return relax.transform.DeadCodeElimination()(folder.builder_.get())


@mutator
class _PaddingFolder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.nn.conv2d") or not isinstance(call.args[0], relax.Var):
            return call
        pad = self.lookup_binding(call.args[0])
        if pad is None:
            return call
        layout = call.attrs.data_layout
        amounts = _zero_padding(pad, layout)
        if amounts is None:
            return call
        return relax.op.nn.conv2d(
            pad.args[0],
            call.args[1],
            strides=call.attrs.strides,
            padding=[int(own) + extra for own, extra in zip(call.attrs.padding, amounts, strict=True)],
            dilation=call.attrs.dilation,
            groups=call.attrs.groups,
            data_layout=layout,
            kernel_layout=call.attrs.kernel_layout,
            out_layout=call.attrs.out_layout,
            out_dtype=call.attrs.out_dtype,
        )


def _zero_padding(expr: relax.Expr, layout: str) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) if the expression pads height and width, and nothing else, with zeros."""
    if not isinstance(expr, relax.Call) or expr.op != tvm.ir.Op.get("relax.nn.pad"):
        return None
    if layout not in ("NCHW", "NHWC") or expr.attrs.pad_mode != "constant" or float(expr.attrs.pad_value) != 0.0:
        return None
    width = [int(amount) for amount in expr.attrs.pad_width]
    before = dict(zip(layout, width[::2], strict=True))
    after = dict(zip(layout, width[1::2], strict=True))
    if any((before["N"], after["N"], before["C"], after["C"])) or min(width) < 0:
        return None
    return before["H"], before["W"], after["H"], after["W"]
