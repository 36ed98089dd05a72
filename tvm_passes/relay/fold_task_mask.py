"""FoldTaskMask: a task becomes ordinary ops on weights.

In:  `main(input, *parameters)`, a network over plain parameters, with `nn.batch_norm`. A parameter's name is its path
     in the network (`layer1.0.conv1.weight`).
Out: the same `main` without BatchNorms, whose masked parameters W are read as `soft_mask · W`. Each mask adds its
     parameters (`mask_parameters`) behind the others, with a number of soft values that is fixed.

     A BatchNorm over a convolution that nothing else reads is folded: with s = γ/√(σ² + ε) the weight becomes
     s[o]·soft_mask·W and the bias β + (b - μ)·s. Any other BatchNorm becomes the affine x·s + (β - μ·s).

Everything new but that affine depends on parameters alone, so LiftWeights can move it out of `main`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relay

from tvm_passes.parameters import mask_parameters

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MaskLayout:
    """The mask of one parameter.

    Attributes:
        shape: of the mask.
        group_size: how many input channels share a value (more than 1 in groups).
        coded: whether soft values are codes, uint8; else they are float32.
        soft_values: the most that a task has. Relay's shapes are fixed, so tasks with fewer fill up.
    """

    shape: Shape
    group_size: int
    coded: bool
    soft_values: int


@relay.transform.function_pass(opt_level=0, name="FoldTaskMask")
class FoldTaskMask:
    """Folds masks and BatchNorms into the weights of a function whose types are known.

    Args:
        masks: the mask of each masked layer, by its path, where the parameter is `<path>.weight`, or by the parameter's
            own name.
    """

    def __init__(self, masks: Mapping[str, MaskLayout]) -> None:
        self.masks = masks

    def transform_function(
        self, function: relay.Function, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> relay.Function:
        """The folded function."""
        return _Folder(function, self.masks).fold()


class _Folder(relay.ExprMutator):
    def __init__(self, function: relay.Function, masks: Mapping[str, MaskLayout]) -> None:
        super().__init__()
        self.function = function
        self.parameters = {layer: _mask_parameters(layer, layout) for layer, layout in masks.items()}
        self.masked = {name: (layer, layout) for layer, layout in masks.items() for name in (layer, f"{layer}.weight")}
        self.uses = _count_uses(function.body)

    def fold(self) -> relay.Function:
        body = self.visit(self.function.body)
        added = [parameter for parameters in self.parameters.values() for parameter in parameters]
        return relay.Function([*self.function.params, *added], body)

    def visit_var(self, variable: relay.Var) -> relay.Expr:
        if variable.name_hint not in self.masked:
            return variable
        layer, layout = self.masked[variable.name_hint]
        inputs = int(variable.type_annotation.shape[1])
        return variable * _soft_mask(layout, self.parameters[layer], inputs)

    def visit_tuple_getitem(self, item: relay.TupleGetItem) -> relay.Expr:
        call = item.tuple_value
        if not (_is_call(call, "nn.batch_norm") and item.index == 0):
            return super().visit_tuple_getitem(item)
        data, gamma, beta, mean, variance = map(self.visit, call.args)
        scale = gamma / relay.sqrt(variance + relay.const(float(call.attrs.epsilon), "float32"))
        convolution, bias = _split_bias(data) if self.uses.get(call.args[0], 0) == 1 else (None, None)
        if convolution is None:
            return data * _channels(scale) + _channels(beta - mean * scale)
        image, weight = convolution.args
        rows = int(call.args[1].checked_type.shape[0])
        # A depthwise convolution with a multiplier has its weights as [groups, multiplier, kH, kW].
        groups, inputs = _weight_shape(call.args[0])
        shape = (-1, 1, 1, 1) if groups == rows else (groups, inputs, 1, 1)
        shift = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        scaled = relay.Call(convolution.op, [image, weight * relay.reshape(scale, shape)], convolution.attrs)
        return relay.nn.bias_add(scaled, shift)


def _split_bias(data: relay.Expr) -> tuple[relay.Call | None, relay.Expr | None]:
    """The convolution that `data` is, and its bias [O]: data = conv2d(…) or data = bias_add(conv2d(…), bias)."""
    if _is_call(data, "nn.conv2d"):
        return data, None
    if _is_call(data, "nn.bias_add") and _is_call(data.args[0], "nn.conv2d"):
        return data.args[0], data.args[1]
    return None, None


def _weight_shape(data: relay.Expr) -> tuple[int, int]:
    """The first two axes of the weight of the convolution that `data` is, with or without bias."""
    convolution = data.args[0] if _is_call(data, "nn.bias_add") else data
    shape = convolution.args[1].checked_type.shape
    return int(shape[0]), int(shape[1])


def _is_call(expression: relay.Expr, op: str) -> bool:
    return isinstance(expression, relay.Call) and expression.op == tvm.ir.Op.get(op)


def _channels(vector: relay.Expr) -> relay.Expr:
    """A vector [C] in a shape that broadcasts over [N, C, H, W]."""
    return relay.reshape(vector, (1, -1, 1, 1))


def _count_uses(body: relay.Expr) -> dict[relay.Expr, int]:
    uses: dict[relay.Expr, int] = {}

    def visit(expression: relay.Expr) -> None:
        operands = {relay.Call: "args", relay.Tuple: "fields"}.get(type(expression))
        if operands is not None:
            for operand in getattr(expression, operands):
                uses[operand] = uses.get(operand, 0) + 1
        elif isinstance(expression, relay.TupleGetItem):
            uses[expression.tuple_value] = uses.get(expression.tuple_value, 0) + 1

    relay.analysis.post_order_visit(body, visit)
    return uses


def _mask_parameters(layer: str, layout: MaskLayout) -> list[relay.Var]:
    return [
        relay.var(parameter.name, shape=parameter.shape, dtype=parameter.dtype)
        for parameter in mask_parameters(layer, layout.shape, layout.coded, layout.soft_values)
    ]


def _soft_mask(layout: MaskLayout, parameters: list[relay.Var], inputs: int) -> relay.Expr:
    """The soft mask, float32, in a shape that broadcasts over a weight of so many input channels."""
    bits, scale, row_start, scale_range = parameters
    rows, columns = layout.shape[0], math.prod(layout.shape[1:])
    places = relay.const(np.arange(7, -1, -1, dtype=np.uint8))
    spread = relay.bitwise_and(relay.right_shift(relay.expand_dims(bits, 1), places), relay.const(np.uint8(1)))
    bit = relay.strided_slice(relay.reshape(spread, (-1,)), begin=[0], end=[rows * columns])
    bit = relay.cast(relay.reshape(bit, (rows, columns)), "int32")
    zeros_before = relay.cumsum(relay.const(1) - bit, axis=1, exclusive=True)
    position = relay.expand_dims(row_start, 1) + zeros_before
    number = relay.cast(relay.take(scale, position, mode="clip"), "float32")
    low, step = (relay.strided_slice(scale_range, begin=[part], end=[part + 1]) for part in (0, 1))
    mask = relay.where(relay.cast(bit, "bool"), relay.const(1.0), low + number * step)
    mask = relay.reshape(mask, layout.shape)
    if layout.group_size > 1:
        mask = relay.repeat(mask, layout.group_size, axis=1)
        mask = relay.strided_slice(mask, begin=[0], end=[inputs], axes=[1])
    return mask
