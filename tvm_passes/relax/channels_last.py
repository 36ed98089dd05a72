"""Turns a network of NCHW activations into one of NHWC activations.

In:  a Relax module with `nn.conv2d` of data layout NCHW and kernel layout OIHW, as the PyTorch frontend writes it.
     `nn.batch_norm` must have been folded or decomposed before.
Out: the same module, its signature unchanged. Every activation behind the first convolution lives in NHWC, and the
     weights are HWIO. The network's input is transposed once. Transposes of weights and biases sit directly on the
     parameter (or on what is computed from parameters), so that `LiftTransformParams` can move them out of `main`.

Channels last lets one schedule serve every number of channels: the channels of one pixel are contiguous in the
activations and in the weights alike, so all operators vectorise over them. An operator that this pass does not know
still works: its inputs are transposed back.
"""

from collections.abc import Callable

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator


@tvm.transform.module_pass(opt_level=0, name="ConvertToChannelsLast")
class ConvertToChannelsLast:
    """Converts NCHW convolutions, and what surrounds them, to NHWC with HWIO weights."""

    def transform_module(self, mod: IRModule, _: PassContext) -> IRModule:
        """The module with every Relax function converted."""
        converter = _LayoutConverter(mod)
        for name, function in mod.functions_items():
            if isinstance(function, relax.Function):
                converter.builder_.update_func(name, converter.visit_expr(function))
        return relax.transform.DeadCodeElimination()(converter.builder_.get())


_ELEMENTWISE = {
    *("nn.relu", "nn.silu", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "clip", "sigmoid", "tanh", "exp"),
    *("log", "sqrt", "rsqrt", "abs", "negative", "square", "erf", "astype", "round"),
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power"),
}
_POOLING = {"nn.max_pool2d", "nn.avg_pool2d", "nn.adaptive_avg_pool2d"}
_REDUCTIONS = {"mean", "sum", "max", "min"}


@mutator
class _LayoutConverter(PyExprMutator):
    """Rewrites binding by binding and remembers which values exist in channels-last form."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        # Value of the old function -> the same value in the new function with its channels last.
        self.converted: dict[relax.Var, relax.Var] = {}
        # A tuple of activations (the result of split) -> the same tuple, every element with its channels last.
        self.converted_tuples: dict[relax.Var, relax.Var] = {}
        # The axis and the inputs of a concatenation -> its result.
        self.concatenated: dict[tuple[int | relax.Expr, ...], relax.Var] = {}
        # Transposes that were already made, in either direction, so that each value is transposed at most once.
        self.transposed: dict[relax.Var, relax.Var] = {}
        self.restored: dict[relax.Var, relax.Var] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value, variable = binding.value, binding.var
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self.converted_tuples:
            element = relax.TupleGetItem(self.converted_tuples[value.tuple_value], value.index)
            self.converted[variable] = self.builder_.emit(element, variable.name)
        elif isinstance(value, relax.Var) and value in self.converted:
            self.converted[variable] = self.converted[value]
        elif isinstance(value, relax.Call) and self._convert_call(variable, value):
            pass
        else:
            super().visit_var_binding_(binding)
            return
        if not isinstance(variable, relax.DataflowVar) and variable in self.converted:
            # Code outside the dataflow block, such as the function's return, sees the original layout.
            original = _original_layout(self.converted[variable])
            self.set_var_remap(variable, self.builder_.emit_output(original, variable.name))
            del self.converted[variable]

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        restored = self._restore(var)
        return super().visit_var_(var) if restored is None else restored

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
        restored = self._restore(var)
        return super().visit_dataflow_var_(var) if restored is None else restored

    def _restore(self, var: relax.Var) -> relax.Expr | None:
        """A converted value in its original layout, for an operator that knows no other; None if not converted."""
        if var in self.converted and var not in self.restored:
            self.restored[var] = self.builder_.emit(_original_layout(self.converted[var]), var.name)
        elif var in self.converted_tuples and var not in self.restored:
            elements = relax.Tuple(
                [
                    self.builder_.emit(_original_layout(self.builder_.emit(relax.TupleGetItem(converted, index))))
                    for converted in [self.converted_tuples[var]]
                    for index in range(len(converted.ty.fields))
                ]
            )
            self.restored[var] = self.builder_.emit(elements, var.name)
        return self.restored.get(var)

    def _channels_last(self, expr: relax.Expr) -> relax.Expr:
        """Any tensor of rank 4 or more with its channels last; others, such as scalars, as they are."""
        if expr in self.converted:
            return self.converted[expr]
        value = self.visit_expr(expr)
        if _rank(expr) < 4:
            return value
        if not isinstance(expr, relax.Var):
            return self.builder_.emit(_channels_last_layout(value))
        if expr not in self.transposed:
            self.transposed[expr] = self.builder_.emit(_channels_last_layout(value), expr.name)
        return self.transposed[expr]

    def _convert_call(self, variable: relax.Var, call: relax.Call) -> bool:
        """Emits the call in channels-last form; False if it has none."""
        if not isinstance(call.op, tvm.ir.Op):
            return False
        name = call.op.name.removeprefix("relax.")
        convert: Callable[[relax.Call], relax.Expr | None] | None = None
        if name == "nn.conv2d":
            convert = self._conv2d
        elif name in _ELEMENTWISE:
            convert = self._elementwise
        elif name in ("concat", "split"):
            convert = self._concat if name == "concat" else self._split
        elif call.args and call.args[0] in self.converted:
            if name in _POOLING:
                convert = self._pooling
            elif name in _REDUCTIONS:
                return self._reduction(variable, call)
            elif name == "reshape":
                return self._reshape(variable, call)
            else:
                convert = {"nn.pad": self._pad, "permute_dims": self._permute_dims}.get(name)
        result = convert(call) if convert else None
        if result is None:
            return False
        known = self.converted_tuples if name == "split" else self.converted
        known[variable] = result if isinstance(result, relax.Var) else self.builder_.emit(result, variable.name)
        return True

    def _conv2d(self, call: relax.Call) -> relax.Expr | None:
        attrs = call.attrs
        if (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != ("NCHW", "OIHW", "NCHW"):
            return None
        data = self._channels_last(call.args[0])
        weight = self.builder_.emit(relax.op.permute_dims(self.visit_expr(call.args[1]), [2, 3, 1, 0]))
        return relax.op.nn.conv2d(
            data,
            weight,
            strides=attrs.strides,
            padding=attrs.padding,
            dilation=attrs.dilation,
            groups=attrs.groups,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_dtype=attrs.out_dtype,
        )

    def _elementwise(self, call: relax.Call) -> relax.Expr | None:
        converted = [argument for argument in call.args if argument in self.converted]
        if not converted:
            return None
        rank = _rank(converted[0])
        if any(_rank(argument) not in (0, rank) for argument in call.args):
            return None
        return relax.Call(call.op, [self._channels_last(argument) for argument in call.args], call.attrs, call.ty_args)

    def _concat(self, call: relax.Call) -> relax.Expr | None:
        tensors = call.args[0]
        if not isinstance(tensors, relax.Tuple) or not any(field in self.converted for field in tensors.fields):
            return None
        axis = _channels_last_axis(call.attrs.axis, _rank(tensors.fields[0]))
        fields = [self._channels_last(field) for field in tensors.fields]
        if len(fields) == 1:
            return fields[0]
        # DenseNet concatenates a longer list of the same tensors in every layer. Starting from the previous result
        # makes each of them one of two inputs: a small function instead of one that tells dozens of inputs apart.
        key = (axis, *fields)
        joined = self.concatenated.get(key[:-1])
        result = self.builder_.emit(relax.op.concat(fields if joined is None else [joined, fields[-1]], axis))
        self.concatenated[key] = result
        return result

    def _split(self, call: relax.Call) -> relax.Expr | None:
        if call.args[0] not in self.converted:
            return None
        axis = _channels_last_axis(call.attrs.axis, _rank(call.args[0]))
        return relax.op.split(self.converted[call.args[0]], call.attrs.indices_or_sections, axis)

    def _pooling(self, call: relax.Call) -> relax.Expr | None:
        if call.attrs.layout != "NCHW" or call.attrs.out_layout != "NCHW":
            return None
        data = self.converted[call.args[0]]
        if call.op.name == "relax.nn.adaptive_avg_pool2d":
            return relax.op.nn.adaptive_avg_pool2d(data, call.attrs.output_size, layout="NHWC")
        operator = relax.op.nn.max_pool2d if call.op.name == "relax.nn.max_pool2d" else relax.op.nn.avg_pool2d
        attrs = call.attrs
        return operator(
            data,
            attrs.pool_size,
            attrs.strides,
            attrs.padding,
            attrs.dilation,
            attrs.ceil_mode,
            attrs.count_include_pad,
            layout="NHWC",
        )

    def _pad(self, call: relax.Call) -> relax.Expr:
        width = call.attrs.pad_width
        order = _channels_last_order(_rank(call.args[0]))
        moved = [amount for axis in order for amount in (width[2 * axis], width[2 * axis + 1])]
        return relax.op.nn.pad(self.converted[call.args[0]], moved, call.attrs.pad_mode, float(call.attrs.pad_value))

    def _permute_dims(self, call: relax.Call) -> relax.Expr | None:
        """A permutation among the channel axes, as in ShuffleNet's channel shuffle."""
        rank = _rank(call.args[0])
        axes = [int(axis) for axis in call.attrs.axes or reversed(range(rank))]
        if [axes[0], *axes[-2:]] != [0, rank - 2, rank - 1]:
            return None
        order = _channels_last_order(rank)
        return relax.op.permute_dims(self.converted[call.args[0]], [order.index(axes[axis]) for axis in order])

    def _reduction(self, variable: relax.Var, call: relax.Call) -> bool:
        rank = _rank(call.args[0])
        axes = [int(axis) % rank for axis in call.attrs.axis or range(rank)]
        if not call.attrs.keepdims and not {rank - 2, rank - 1} <= set(axes):
            return False
        data = self.converted[call.args[0]]
        operator = getattr(relax.op, call.op.name.removeprefix("relax."))
        result = operator(data, [_channels_last_axis(axis, rank) for axis in axes], bool(call.attrs.keepdims))
        if call.attrs.keepdims:
            self.converted[variable] = self.builder_.emit(result, variable.name)
        else:
            # Without its spatial axes the result is the same tensor in both layouts.
            self._emit_unconverted(variable, result)
        return True

    def _reshape(self, variable: relax.Var, call: relax.Call) -> bool:
        old, new = _shape(call.args[0]), _shape(variable)
        data = self.converted[call.args[0]]
        if old is None or new is None:
            return False
        if len(new) >= 4 and old[0] == new[0] and old[-2:] == new[-2:]:
            # Only channel axes are split or joined: they lie together in both layouts.
            reshaped = relax.op.reshape(data, [new[0], *new[-2:], *new[1:-2]])
            self.converted[variable] = self.builder_.emit(reshaped, variable.name)
            return True
        if old[-2:] == [1, 1]:
            self._emit_unconverted(variable, relax.op.reshape(data, new))
            return True
        return False

    def _emit_unconverted(self, variable: relax.Var, value: relax.Expr) -> None:
        """Binds a value whose layout is the original one, in place of `variable`."""
        emit = self.builder_.emit if isinstance(variable, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(variable, emit(value, variable.name))


def _channels_last_order(rank: int) -> list[int]:
    """Axes of N, C…, H, W in the order N, H, W, C…"""
    return [0, rank - 2, rank - 1, *range(1, rank - 2)]


def _channels_last_axis(axis: int, rank: int) -> int:
    return _channels_last_order(rank).index(int(axis) % rank)


def _channels_last_layout(expr: relax.Expr) -> relax.Expr:
    shape = _shape(expr)
    if shape is not None and shape[-2:] == [1, 1]:
        # A reshape is free, where a transpose is a copy.
        return relax.op.reshape(expr, [shape[0], 1, 1, *shape[1:-2]])
    return relax.op.permute_dims(expr, _channels_last_order(len(expr.ty.shape)))


def _original_layout(expr: relax.Expr) -> relax.Expr:
    shape = _shape(expr)
    if shape is not None and shape[1:3] == [1, 1]:
        return relax.op.reshape(expr, [shape[0], *shape[3:], 1, 1])
    rank = len(expr.ty.shape)
    order = _channels_last_order(rank)
    return relax.op.permute_dims(expr, [order.index(axis) for axis in range(rank)])


def _rank(expr: relax.Expr) -> int:
    """Number of axes; 0 for what is no tensor, such as the bounds of a clip."""
    return int(expr.ty.ndim) if isinstance(expr.ty, relax.TensorType) else 0


def _shape(expr: relax.Expr) -> list[int] | None:
    """The shape if all of it is known, else None."""
    if not isinstance(expr.ty, relax.TensorType) or not isinstance(expr.ty.shape, relax.ShapeExpr):
        return None
    values = list(expr.ty.shape.values)
    return [int(value) for value in values] if all(isinstance(value, tvm.tirx.IntImm) for value in values) else None
