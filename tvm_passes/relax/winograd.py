"""Computes 3×3 convolutions with fewer multiplications: Winograd's minimal filtering.

In:  a Relax module of NHWC convolutions with HWIO weights (`ConvertToChannelsLast`).
Out: the same module; each 3×3 convolution of stride 1 for which it pays is a call of a kernel that takes transformed
     weights. The transform of the weights sits directly on the parameter (or on what is computed from parameters), so
     that `LiftTransformParams` moves it out of `main`.

The kernels are those of `winograd_kernels`.
"""

from collections.abc import Callable

import tvm
from tvm import relax, te
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.winograd_kernels import POINTS, convolution, transform_weight


@tvm.transform.module_pass(opt_level=0, name="WinogradConvolutions")
class WinogradConvolutions:
    """Replaces the 3×3 convolutions for which it pays.

    Args:
        lanes: float32 values in a vector register of the target's CPU.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Rewrites every function."""
        rewriter = _Rewriter(module, self.lanes)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(name, rewriter.visit_expr(function))
        return rewriter.builder_.get()


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, module: IRModule, lanes: int) -> None:
        super().__init__(module)
        self.lanes = lanes

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.nn.conv2d") or not _is_plain_3x3(call):
            return call
        data, weight = call.args
        _, rows, columns, outputs = map(int, call.ty.shape)
        inputs = int(data.ty.shape[3])
        lanes = next((lanes for lanes in _channel_blocks(self.lanes) if outputs % lanes == 0), None)
        tile = best_tile(rows, columns, inputs, outputs, self.lanes)
        if lanes is None or tile is None:
            return call
        transformed = self.builder_.emit(
            self._call("winograd_weight", lambda tensor: transform_weight(tensor, tile, lanes), weight)
        )
        top, left, bottom, right = map(int, call.attrs.padding)

        def compute(data: te.Tensor, weight: te.Tensor) -> te.Tensor:
            return convolution(data, weight, tile, (top, left, bottom, right))

        return self._call("winograd_conv2d", compute, data, transformed, pattern=4)

    def _call(
        self, name: str, compute: Callable[..., te.Tensor], *arguments: relax.Expr, pattern: int = 8
    ) -> relax.Call:
        """A call of a kernel; `pattern` is TVM's: 4 for what elementwise operators may follow, 8 for nothing."""
        shapes = [tuple(map(int, argument.ty.shape)) for argument in arguments]
        inputs = [te.placeholder(shape, "float32", name=f"input{index}") for index, shape in enumerate(shapes)]
        output = compute(*inputs)
        # Relax counts in int64.
        kernel = te.create_prim_func([*inputs, output], index_dtype_override="int64").with_attr("op_pattern", pattern)
        shape = tuple(map(int, output.shape))
        function = self.builder_.add_func(kernel.without_attr("global_symbol"), name)
        return relax.call_tir(function, list(arguments), out_ty=relax.TensorType(shape, "float32"))


def _is_plain_3x3(call: relax.Call) -> bool:
    attrs = call.attrs
    return (
        (attrs.data_layout, attrs.kernel_layout) == ("NHWC", "HWIO")
        and [int(extent) for extent in call.args[1].ty.shape][:2] == [3, 3]
        and all(int(one) == 1 for one in (*attrs.strides, *attrs.dilation, attrs.groups))
        and call.ty.dtype == "float32"
    )


def _channel_blocks(lanes: int) -> tuple[int, ...]:
    """How many output channels to hold in registers together, best first, for vectors of `lanes`."""
    widest = max(2 * lanes, 16)
    return tuple(width for width in (widest, widest // 2, widest // 4) if width >= lanes)


def best_tile(rows: int, columns: int, inputs: int, outputs: int, lanes: int) -> int | None:
    """The m of F(m×m, 3×3) with which a convolution of one image is fastest; None if that is the direct form.

    Counts the cycles of a core that starts two multiply-adds a cycle and reaches 80 % of that, and gets 6 bytes of
    weights a cycle from memory. A gain below an eighth is not worth the larger weights.
    """

    def cycles(products: int, weights: int) -> float:
        return products * inputs * outputs / (2 * lanes * 0.8) + weights * inputs * outputs * 4 / 6

    found: dict[int | None, float] = {None: cycles(9 * rows * columns, 9) * 7 / 8}
    for tile in POINTS:
        tiles, elements = -(-rows // tile) * -(-columns // tile), (tile + 2) ** 2
        # So many cycles for the transform of each vector of data and of products, measured.
        transforms_of_tiles = 12 * elements * tiles * (inputs + outputs) / lanes
        found[tile] = cycles(elements * tiles, elements) + transforms_of_tiles
    return min(found, key=lambda tile: found[tile])
