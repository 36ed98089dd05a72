"""Gives every convolution and linear layer the form, and its weights the layout, in which a CPU is fastest.

In:  a Relax module of NHWC convolutions with HWIO weights (`ConvertToChannelsLast`), and products [N, I] × [I, O].
Out: the same module; 3×3 convolutions for which it pays are calls of Winograd's kernel (`kernels/winograd.py`), and all
     others but depthwise ones calls of the direct kernel with packed weights (`packed_convolution`), whose output
     channels are filled up where that pays. Products with many rows and a weight that whole vectors divide are calls of
     `packed_product`. What is done to a weight sits directly on the parameter (or on what is computed from parameters),
     so that `LiftTransformParams` moves it out of `main`.
"""

import logging
from collections.abc import Callable, Hashable

import tvm
from tvm import relax, te
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.kernels.packed_convolution import cropped_convolution, packed_convolution
from tvm_passes.relax.kernels.packed_product import packed_product
from tvm_passes.relax.kernels.winograd import POINTS, convolution, transform_weight
from tvm_passes.relax.schedules.base.precision import value_bytes
from tvm_passes.relax.schedules.cpu.grouped_convolution import lanes_of_groups
from tvm_passes.relax.schedules.cpu.matrix_product import FEWEST_ROWS
from tvm_passes.relax.schedules.cpu.tile_model import bytes_apart, filled_channels, ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit
from tvm_passes.unknown_dtype import check_dtype

# Marks the transform of a weight and says its tile, for the passes behind.
WEIGHT_TRANSFORM = "winograd_weight"
# TVM's op patterns: what elementwise operators may be fused behind, and what nothing may be fused to.
_REDUCTION, _OPAQUE = 4, 8
_DTYPE = "float32"  # What the kernels are written for.
# By what is computed of which tensors.
_Kernels = dict[Hashable, tuple[tvm.ir.GlobalVar, tvm.tirx.PrimFunc]]

_log = logging.getLogger(__name__)


@tvm.transform.module_pass(opt_level=0, name="WeightLayouts")
class WeightLayouts:
    """Replaces convolutions by calls of kernels that take weights in a layout of their own.

    Modules that one pass object rewrote share their kernels' variables, so that they can be joined.

    Args:
        unit: of the CPU.
    """

    def __init__(self, unit: VectorUnit) -> None:
        self.unit = unit
        self.kernels: _Kernels = {}

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Rewrites every function."""
        rewriter = _Rewriter(module, self.unit, self.kernels)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.parameters = set(function.params[1:])
                rewriter.builder_.update_func(name, rewriter.visit_expr(function))
        return rewriter.builder_.get()


@mutator
class _Rewriter(PyExprMutator):
    """Rewrites the functions of one module; `kernels` are those of all modules, `present` those of this one."""

    def __init__(self, module: IRModule, unit: VectorUnit, kernels: _Kernels) -> None:
        super().__init__(module)
        self.unit = unit
        self.kernels = kernels
        self.present: set[Hashable] = set()
        self.parameters: set[relax.Var] = set()
        """Of the function that is rewritten, all but its input."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op == tvm.ir.Op.get("relax.matmul"):
            product = self._product(call)
            return call if product is None else product
        if call.op != tvm.ir.Op.get("relax.nn.conv2d") or not _is_channels_last(call):
            return call
        check_dtype("WeightLayouts", self._parameter(call.args[1]), call.args[1].ty.dtype, _DTYPE)
        for form in (self._winograd, self._packed):
            if (replaced := form(call)) is not None:
                return replaced
        _log.info("%s stays as it is: its convolution is depthwise", self._parameter(call.args[1]))
        return call

    def _parameter(self, weight: relax.Expr) -> str:
        """The name of the parameter that a weight is computed from: the first operand of each step on the way."""
        while isinstance(weight, relax.Var) and (bound := self.lookup_binding(weight)) is not None:
            weight = bound.args[0]
        return str(weight.name) if isinstance(weight, relax.Var) else "a constant"

    def _is_of_parameters(self, value: relax.Expr) -> bool:
        """Whether a value is computed from parameters alone."""
        bound = self.lookup_binding(value) if isinstance(value, relax.Var) else value
        if bound is None:
            return value in self.parameters
        return all(map(self._is_of_parameters, relax.analysis.free_vars(bound)))

    def _winograd(self, call: relax.Call) -> relax.Call | None:
        """Winograd's form; None where it does not pay."""
        data, weight = call.args
        _, rows, columns, outputs = map(int, call.ty.shape)
        dtype = str(weight.ty.dtype)
        lanes = next((lanes for lanes in _channel_blocks(self.unit.lanes(dtype)) if outputs % lanes == 0), None)
        tile = best_tile(rows, columns, int(data.ty.shape[3]), outputs, self.unit.lanes(dtype), value_bytes(dtype))
        if lanes is None or tile is None or not _is_plain_3x3(call):
            return None
        _log.info("%s is transformed for Winograd's form, F(%d×%d, 3×3)", self._parameter(weight), tile, tile)
        mark = {WEIGHT_TRANSFORM: tile}
        transform = self._call("winograd_weight", transform_weight, [weight], (tile, lanes), _OPAQUE, **mark)
        transformed = self.builder_.emit(transform)
        padding = tuple(map(int, call.attrs.padding))
        return self._call("winograd_conv2d", convolution, [data, transformed], (tile, padding), _REDUCTION)

    def _packed(self, call: relax.Call) -> relax.Call | None:
        """The direct form with packed weights; None for a depthwise convolution, which has little to pack."""
        data, weight = call.args
        height, width, inputs, outputs = map(int, weight.ty.shape)
        groups, attrs = int(call.attrs.groups), call.attrs
        batch, rows, columns, _ = map(int, call.ty.shape)
        if inputs == 1 and groups > 1:
            return None
        pixels, depth = batch * rows * columns, height * width * inputs
        strides, padding, dilation = (tuple(map(int, one)) for one in (attrs.strides, attrs.padding, attrs.dilation))
        options, dtype = (strides, padding, dilation), str(call.ty.dtype)
        apart = bytes_apart((height, width), strides[1], inputs * groups, dtype)
        joined = lanes_of_groups(inputs, outputs, groups, width, strides[1], columns, self.unit, dtype)
        if joined is not None:
            filled = -(-outputs // joined) * joined if outputs % joined else None
        else:
            filled = filled_channels(pixels, outputs, depth, self.unit, dtype, apart) if groups == 1 else None
        if filled is not None:
            _log.info("%s is filled up to %d output channels", self._parameter(weight), filled)
            weight = self.builder_.emit(relax.op.nn.pad(weight, [0] * 7 + [filled - outputs]))
        (_, best), _ = ranked_tiles(pixels, filled or outputs // groups, depth, self.unit, dtype, apart)[0]
        lanes = joined or best
        _log.info("%s is packed in blocks of %d output channels", self._parameter(weight), lanes)
        blocks = relax.op.reshape(weight, (height, width, inputs, (filled or outputs) // lanes, lanes))
        packed = self.builder_.emit(relax.op.permute_dims(self.builder_.emit(blocks), [3, 0, 1, 2, 4]))
        if filled is not None:
            return self._call("conv2d", cropped_convolution, [data, packed], (*options, groups, outputs), _REDUCTION)
        return self._call("conv2d", packed_convolution, [data, packed], (*options, groups), _REDUCTION)

    def _product(self, call: relax.Call) -> relax.Call | None:
        """A linear layer with packed weights; None for any other product, and where rows are too few for its tiles."""
        data, weight = call.args
        if (data.ty.ndim, weight.ty.ndim) != (2, 2) or not self._is_of_parameters(weight):
            return None
        (rows, inputs), outputs, dtype = map(int, data.ty.shape), int(weight.ty.shape[1]), str(weight.ty.dtype)
        if rows < FEWEST_ROWS or dtype != _DTYPE or outputs % self.unit.lanes(dtype):
            return None
        (_, lanes), _ = ranked_tiles(rows, outputs, inputs, self.unit, dtype, value_bytes(dtype) * inputs)[0]
        _log.info("%s is packed in blocks of %d outputs", self._parameter(weight), lanes)
        blocks = relax.op.reshape(weight, (inputs, outputs // lanes, lanes))
        packed = self.builder_.emit(relax.op.permute_dims(self.builder_.emit(blocks), [1, 0, 2]))
        return self._call("matmul", packed_product, [data, packed], (), _REDUCTION)

    def _call(
        self,
        name: str,
        compute: Callable[..., te.Tensor],
        arguments: list[relax.Expr],
        options: tuple[Hashable, ...],
        pattern: int,
        **attributes: int,
    ) -> relax.Call:
        """A call of the kernel that computes `compute(*arguments, *options)`; written once for equal shapes.

        Args:
            name: of the kernel.
            compute: from tensors and options to the result.
            arguments: the tensors.
            options: what else `compute` takes.
            pattern: TVM's op pattern of the kernel.
            attributes: others of the kernel.
        """
        types = tuple((tuple(map(int, argument.ty.shape)), argument.ty.dtype) for argument in arguments)
        key = (compute, types, options)
        if key not in self.kernels:
            inputs = [te.placeholder(*one, name=f"input{index}") for index, one in enumerate(types)]
            # Relax counts in int64.
            kernel = te.create_prim_func([*inputs, compute(*inputs, *options)], index_dtype_override="int64")
            kernel = kernel.without_attr("global_symbol").with_attrs({"op_pattern": pattern, **attributes})
            self.kernels[key] = self.builder_.add_func(kernel, name), kernel
        elif key not in self.present:
            self.builder_.update_func(*self.kernels[key])
        self.present.add(key)
        variable, kernel = self.kernels[key]
        result = kernel.params[-1].ty
        out_type = relax.TensorType(tuple(map(int, result.shape)), result.dtype)
        return relax.call_tir(variable, arguments, out_ty=out_type)


def _is_channels_last(call: relax.Call) -> bool:
    return (call.attrs.data_layout, call.attrs.kernel_layout) == ("NHWC", "HWIO")


def _is_plain_3x3(call: relax.Call) -> bool:
    attrs = call.attrs
    return [int(extent) for extent in call.args[1].ty.shape][:2] == [3, 3] and all(
        int(one) == 1 for one in (*attrs.strides, *attrs.dilation, attrs.groups)
    )


def _channel_blocks(lanes: int) -> tuple[int, ...]:
    """How many output channels to hold in registers together, best first, for vectors of `lanes`."""
    widest = max(2 * lanes, 16)
    return tuple(width for width in (widest, widest // 2, widest // 4) if width >= lanes)


def best_tile(rows: int, columns: int, inputs: int, outputs: int, lanes: int, weight_bytes: int) -> int | None:
    """The m of F(m×m, 3×3) with which a convolution of one image is fastest; None if that is the direct form.

    Counts the cycles of a core that starts two multiply-adds a cycle and reaches 80 % of that, and gets 6 bytes of
    weights a cycle from memory. A gain below an eighth is not worth the larger weights.

    Args:
        rows, columns: of the result.
        inputs, outputs: channels.
        lanes: values in a vector.
        weight_bytes: of one weight.
    """

    def cycles(products: int, weights: int) -> float:
        return products * inputs * outputs / (2 * lanes * 0.8) + weights * inputs * outputs * weight_bytes / 6

    found: dict[int | None, float] = {None: cycles(9 * rows * columns, 9) * 7 / 8}
    for tile in POINTS:
        tiles, elements = -(-rows // tile) * -(-columns // tile), (tile + 2) ** 2
        # So many cycles for the transform of each vector of data and of products, measured.
        transforms_of_tiles = 12 * elements * tiles * (inputs + outputs) / lanes
        found[tile] = cycles(elements * tiles, elements) + transforms_of_tiles
    return min(found, key=lambda tile: found[tile])
