"""Quantise: a folded network in float32 becomes one of integers.

In:  `main(input, *parameters)`, masks and BatchNorms folded into weights (`FoldTaskMask`), activations channels-last
     (`ConvertToChannelsLast`).
Out: the same `main` with a parameter more for each quantised tensor, `quantisation/<tensor>`, float32 [2]: its scale
     and zero point; and for each activation that is no clamp (`activations.py`) `table/<function>/<tensor>:<result>`,
     uint8 [256]: what it makes of each value. The image is quantised once, and all between it and the logits is uint8:
     every operator is a call of a kernel of `kernels/quantised.py`, or moves values; convolutions and dense layers by a
     CPU's instructions are described (`kernels/integer_kernel.py`), and written when their way is chosen. What is
     calculated of weights and quantisations alone depends on parameters alone, so that `LiftTransformParams` moves it
     out of `main`: one library serves tasks of any scales.

     What stays float is what depends on parameters alone, the image, and the logits. In a dump a result has its
     tensor's name, dots and strokes as underscores, and its type says what it is computed in.

     A tensor's name is that of the layer that computes it, or of the layer that comes last among its operands, `/`, and
     what the operator is (docs/quantisation.md).
"""

import logging
import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, te

from tvm_passes.relax.activations import Activation, activation_at
from tvm_passes.relax.kernels import integer_depthwise as depthwise
from tvm_passes.relax.kernels import quantised as kernels
from tvm_passes.relax.kernels.integer_addition import fills_vectors, integer_addition
from tvm_passes.relax.kernels.integer_convolution import packed_vector
from tvm_passes.relax.kernels.integer_kernel import integer_kernel, packed_weight, packing
from tvm_passes.relax.kernels.integer_look_up import look_up
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors
from tvm_passes.relax.kernels.integer_weights import INTEGER_WEIGHT, layer_mark, quantised_head, quantised_layer

QUANTISATION, TABLE = "quantisation/", "table/"  # Names of parameters begin so.
INPUT = "input"
HEAD = "head"  # The layer whose results are the logits.

_OPAQUE = 8  # TVM's op pattern of what nothing is fused to.
_MOVING = {"reshape", "permute_dims", "split", "strided_slice", "nn.max_pool2d", "flatten", "squeeze"}
_FREE = (-math.inf, math.inf)
_Computed: TypeAlias = "te.Tensor | tuple[te.Tensor, ...]"
_Kernels = dict[Hashable, tuple[tvm.ir.GlobalVar, tvm.tirx.PrimFunc]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tensor:
    """A quantised tensor.

    Attributes:
        value: the uint8, or a tuple of such that are quantised alike.
        name: of its quantisation.
        rank: the number of the layer that it has its name from.
        quantisation: the parameter.
    """

    value: relax.Var
    name: str
    rank: int
    quantisation: relax.Var


@tvm.transform.module_pass(opt_level=0, name="Quantise")
class Quantise:
    """Quantises `main`.

    Modules that one pass object rewrote share their kernels' variables, so that they can be joined.

    Args:
        vectors: instructions of the CPU, by which convolutions and dense layers are computed; None where it has none.
        cores: that share the work.
    """

    def __init__(self, vectors: IntegerVectors | None, cores: int) -> None:
        self.vectors = vectors
        self.cores = cores
        self.kernels: _Kernels = {}

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites `main`.

        Raises:
            ValueError: it has an operator that int8 does not know.
        """
        if self.vectors is None:
            _log.warning("int8: the CPU has none of the instructions that are used, so that it is slower than float32.")
        module = _Quantiser(module, self.kernels, self.vectors, self.cores).quantise()
        return relax.transform.DeadCodeElimination(["main"])(module)


class _Quantiser:
    """Rewrites the `main` of one module; `kernels` are those of all modules, `present` those of this one."""

    def __init__(self, module: tvm.IRModule, known: _Kernels, vectors: IntegerVectors | None, cores: int) -> None:
        self.main = module["main"]
        self.builder = relax.BlockBuilder(module)
        self.kernels = known
        self.vectors = vectors
        self.data_type = "uint8" if vectors is None else vectors.data_type
        self.cores = cores
        self.present: set[Hashable] = set()
        self.tensors: dict[relax.Var, _Tensor] = {}
        self.quantisations: dict[str, relax.Var] = {}
        self.tables: list[relax.Var] = []
        self.layers = 0
        bindings = [binding for block in self.main.body.blocks for binding in block.bindings]
        self.values: dict[relax.Var, relax.Expr] = {binding.var: binding.value for binding in bindings}
        self.readers: dict[relax.Var, list[relax.Var]] = {}
        for binding in bindings:
            for used in relax.analysis.free_vars(binding.value):
                self.readers.setdefault(used, []).append(binding.var)
        self.logits: relax.Var | None = None
        self.done: set[relax.Var] = set()

    def quantise(self) -> tvm.IRModule:
        image, *parameters = self.main.params
        with self.builder.function("quantised", [image, *parameters], private=True):
            with self.builder.dataflow():
                self._input(image)
                for variable, value in self.values.items():
                    if variable not in self.done:
                        self._binding(variable, value)
                if self.logits is None:
                    raise ValueError("the network does not end in its head")
                result = self.builder.emit_output(self.logits)
            self.builder.emit_func_output(result)
        module = self.builder.get()
        (variable,) = (one for one in module.get_global_vars() if one.name_hint == "quantised")
        body = module[variable].body
        added = [*self.quantisations.values(), *self.tables]
        main = relax.Function([image, *parameters, *added], body, result.ty, attrs=self.main.attrs)
        del module[variable]
        module[module.get_global_var("main")] = main
        return module

    def _input(self, image: relax.Var) -> None:
        quantisation = self._quantisation(INPUT)
        parameters = self._kernel("input_parameters", kernels.input_parameters, [quantisation])
        value = self._kernel("quantise_input", kernels.quantised_input, [image, parameters], self.data_type)
        self.tensors[image] = _Tensor(value, INPUT, 0, quantisation)

    def _quantisation(self, name: str) -> relax.Var:
        self.quantisations[name] = relax.Var(QUANTISATION + name, relax.TensorType((2,), "float32"))
        return self.quantisations[name]

    def _binding(self, variable: relax.Var, value: relax.Expr) -> None:
        """One binding: of what depends on parameters alone as it is, of all else in integers."""
        operands = [used for used in relax.analysis.free_vars(value) if used in self.tensors]
        if not operands:
            self._of_parameters(variable, value)
            return
        name = value.op.name.removeprefix("relax.") if isinstance(value, relax.Call) else type(value).__name__
        if name in ("nn.conv2d", "matmul"):
            self._layer(variable, value)
        elif name == "add" and all(term in self.tensors for term in value.args):
            self._addition(variable, value)
        elif (activation := activation_at(variable, self.values, self.readers)) is not None:
            self._activation(self.tensors[value.args[0]], activation)
        elif name == "multiply" and all(factor in self.tensors for factor in value.args):
            self._product(variable, value)
        elif name == "multiply" and math.prod(_shape_of(value.args[1])) == _shape_of(value)[-1]:
            self._batch_norm(variable, value)
        elif name == "nn.avg_pool2d" and not (any(value.attrs.padding) or value.attrs.ceil_mode):
            (height, width), (down, across) = (map(int, one) for one in (value.attrs.pool_size, value.attrs.strides))
            self._window_mean(variable, self.tensors[value.args[0]], (height, width), (down, across))
        elif name == "mean":
            self._mean(variable, value)
        elif name == "concat":
            self._concatenation(variable, value)
        elif name in _MOVING or isinstance(value, (relax.TupleGetItem, relax.Var)):
            self._moved(variable, value)
        elif name == "nn.adaptive_avg_pool2d" and _shape_of(value) == _shape_of(value.args[0]):
            self.tensors[variable] = self.tensors[value.args[0]]
        else:
            raise ValueError(f"Quantise does not know {name}, which computes {variable.name}")

    def _of_parameters(self, variable: relax.Var, value: relax.Expr) -> None:
        """What depends on parameters alone, in float32, each product rounded before anything is added to it."""
        if _is_product_of_vectors(value):
            call = self._call("product", kernels.product, list(value.args), attributes={kernels.ROUNDED_PRODUCT: 1})
            value = self.builder.normalize(call)
        self.builder.emit_normalized(relax.VarBinding(variable, value))
        self.done.add(variable)

    def _moved(self, variable: relax.Var, value: relax.Expr) -> None:
        """What calculates nothing works on integers as it does on real values."""
        if isinstance(value, relax.Var):
            self.tensors[variable] = self.tensors[value]
            return
        if isinstance(value, relax.TupleGetItem):
            source = self.tensors[value.tuple_value]
            moved = relax.TupleGetItem(source.value, value.index)
        else:
            source = self.tensors[value.args[0]]
            moved = relax.Call(value.op, [source.value, *value.args[1:]], value.attrs, value.ty_args)
        emitted = self.builder.emit(moved)
        self.tensors[variable] = _Tensor(emitted, source.name, source.rank, source.quantisation)

    def _layer(self, variable: relax.Var, call: relax.Call) -> None:
        """A convolution or dense layer."""
        self._products(variable, self.tensors[call.args[0]], call.args[1], _convolution(call))

    def _batch_norm(self, variable: relax.Var, call: relax.Call) -> None:
        """A BatchNorm that is no layer's own: a convolution by a factor for each channel."""
        data, factors = self.tensors[call.args[0]], call.args[1]
        batch, rows, columns, channels = _shape_of(data.value)
        shape = IntegerConvolution((batch, rows, columns, channels), (1, 1), channels, groups=channels)
        self._products(variable, data, factors, shape)

    def _products(self, variable: relax.Var, data: _Tensor, weight: relax.Var, shape: IntegerConvolution) -> None:
        """What is computed of a weight, with the bias and the clamp that alone read it."""
        layer = self._parameter(weight).removesuffix(".weight").removesuffix("/weight")
        bias, end = self._bias_behind(variable)
        clamp, end = self._clamp_behind(end)
        outputs = int(weight.ty.shape[-1])
        bias = relax.const(np.zeros(outputs, np.float32)) if bias is None else bias
        if len(bias.ty.shape) != 1:
            bias = self.builder.emit(relax.op.reshape(bias, (outputs,)))
        if layer == HEAD:
            quantised, scales, integers = self._weights(shape, [weight, bias, data.quantisation], None)
            self.logits = self._sums(shape, data, quantised, integers, scales, None)
            self.done.add(end)
            return
        self.layers += 1
        into = self._quantisation(layer)
        arguments = [weight, bias, data.quantisation, into]
        quantised, multiplier, integers, bounds = self._weights(shape, arguments, clamp)
        value = self._sums(shape, data, quantised, integers, multiplier, bounds, tensor=layer)
        self._result(end, _Tensor(value, layer, self.layers, into))

    def _sums(
        self,
        shape: IntegerConvolution,
        data: _Tensor,
        weight: relax.Var,
        bias: relax.Var,
        multiplier: relax.Var,
        bounds: relax.Var | None,
        tensor: str = "",
    ) -> relax.Var:
        """The sums of a layer, requantised, or without bounds as real values."""
        if self.vectors is not None:
            return self._vector_sums(
                shape.instructions(self.vectors), shape, data, weight, bias, multiplier, bounds, tensor
            )
        if len(weight.ty.shape) == 2:
            sums = self._kernel("dense_sums", kernels.dense_sums, [data.value, weight, bias])
        else:
            options = (shape.strides, shape.padding, shape.dilation, shape.groups)
            arguments = [data.value, weight, bias, data.quantisation]
            sums = self._kernel("conv2d_sums", kernels.convolution_sums, arguments, *options)
        if bounds is None:
            return self._kernel("logits", kernels.real_sums, [sums, multiplier])
        return self._kernel("requantise", kernels.requantised_sums, [sums, multiplier, bounds], tensor=tensor)

    def _vector_sums(
        self,
        vectors: IntegerVectors,
        shape: IntegerConvolution,
        data: _Tensor,
        weight: relax.Var,
        bias: relax.Var,
        multiplier: relax.Var,
        bounds: relax.Var | None,
        tensor: str,
    ) -> relax.Var:
        """As `_sums`, by the CPU's instructions, from weights that are packed for them."""
        value: relax.Expr = data.value
        is_dense = len(value.ty.shape) == 2
        if is_dense:
            value = self.builder.emit(relax.op.reshape(value, shape.data))
        groups, lanes = (1, depthwise.CHANNELS) if shape.is_depthwise else (shape.groups, vectors.lanes)
        of_channels = [bias, multiplier]
        if shape.outputs // groups % lanes:
            of_channels = [self._kernel("fill_vector", packed_vector, [one], groups, lanes) for one in of_channels]
        arguments = [value, weight, *of_channels, data.quantisation, *([] if bounds is None else [bounds])]

        name = "depthwise_conv2d" if shape.is_depthwise else "logits" if bounds is None else "conv2d"

        window = "" if bounds is None else _window(shape)

        def kernel() -> tvm.tirx.PrimFunc:
            return integer_kernel(shape, vectors, None, real=bounds is None)

        result: relax.Expr = self._written(window + name, kernel, (shape, bounds is None), arguments)
        if is_dense:
            result = relax.op.reshape(self.builder.emit(result), (shape.data[0], shape.outputs))
        return self._emitted(result, tensor)

    def _weights(
        self, shape: IntegerConvolution, arguments: list[relax.Expr], clamp: tuple[float, float] | None
    ) -> list[relax.Var]:
        """What `quantised_layer` makes of its arguments, or without a clamp `quantised_head`."""
        vectors = None if self.vectors is None else shape.instructions(self.vectors)
        options = () if vectors is None else (packed_weight, shape, vectors)
        layout = None if vectors is None else packing(shape, vectors)
        mark = {INTEGER_WEIGHT: layer_mark(self.data_type, clamp, layout)}
        compute, of_results = (quantised_head, ()) if clamp is None else (quantised_layer, (clamp,))
        call = self._call("quantise_layer", compute, arguments, self.data_type, *of_results, *options, attributes=mark)
        made = self.builder.emit(call)
        return [self.builder.emit(relax.TupleGetItem(made, place)) for place in range(len(call.ty_args[0].fields))]

    def _addition(self, variable: relax.Var, call: relax.Call) -> None:
        left, right = (self.tensors[term] for term in call.args)
        clamp, end = self._clamp_behind(variable)
        name, rank = self._derived("addition", left, right)
        into = self._quantisation(name)
        quantisations = [left.quantisation, right.quantisation, into]
        parameters = self._kernel("addition_parameters", kernels.addition_parameters, quantisations)
        bounds = self._kernel("result_bounds", kernels.result_bounds, [into], clamp)
        arguments, shape = [left.value, right.value, parameters, bounds], tuple(_shape_of(left.value))
        vectors = self.vectors
        if vectors is not None and fills_vectors(shape, vectors):
            call = self._written("add", lambda: integer_addition(shape, vectors, self.cores),
                                 (integer_addition, shape), arguments)  # fmt: skip
            value = self._emitted(call, name)
        else:
            value = self._kernel("add", kernels.addition, arguments, tensor=name)
        self._result(end, _Tensor(value, name, rank, into))

    def _product(self, variable: relax.Var, call: relax.Call) -> None:
        left, right = (self.tensors[factor] for factor in call.args)
        name, rank = self._derived("product", left, right)
        into = self._quantisation(name)
        quantisations = [left.quantisation, right.quantisation, into]
        parameters = self._kernel("product_parameters", kernels.product_parameters, quantisations)
        bounds = self._kernel("result_bounds", kernels.result_bounds, [into], _FREE)
        arguments = [left.value, right.value, parameters, bounds]
        value = self._kernel("multiply", kernels.multiplication, arguments, tensor=name)
        self._result(variable, _Tensor(value, name, rank, into))

    def _activation(self, data: _Tensor, activation: Activation) -> None:
        """A function of each value, by a table of the task."""
        name, rank = self._derived(activation.function, data)
        into = self._quantisation(name)
        of_table = f"{TABLE}{activation.function}/{data.name}:{name}"
        self.tables.append(relax.Var(of_table, relax.TensorType((kernels.LARGEST + 1,), "uint8")))
        table = self._kernel("stored_table", kernels.stored_table, [self.tables[-1]], self.data_type)
        shape = tuple(_shape_of(data.value))
        call = self._written("look_up", lambda: look_up(shape, self.data_type, self.vectors, self.cores),
                             (look_up, shape), [data.value, table])  # fmt: skip
        self.done.update(activation.steps)
        value = self._emitted(call, name)
        self._result(activation.steps[-1], _Tensor(value, name, rank, into))

    def _mean(self, variable: relax.Var, call: relax.Call) -> None:
        data = self.tensors[call.args[0]]
        shape = _shape_of(data.value)
        if sorted(int(axis) % len(shape) for axis in call.attrs.axis) != [1, 2] or len(shape) != 4:
            raise ValueError("Quantise knows the mean over height and width alone")
        self._window_mean(variable, data, (shape[1], shape[2]), (1, 1), bool(call.attrs.keepdims))

    def _window_mean(
        self,
        variable: relax.Var,
        data: _Tensor,
        window: tuple[int, int],
        strides: tuple[int, int],
        keepdims: bool = True,
    ) -> None:
        name, rank = self._derived("mean", data)
        into = self._quantisation(name)
        parameters = self._rescaling(data, into, math.prod(window))
        bounds = self._kernel("result_bounds", kernels.result_bounds, [into], _FREE)
        arguments = [data.value, parameters, bounds]
        value = self._kernel("mean", kernels.window_mean, arguments, window, strides, tensor=name)
        if not keepdims:
            batch, _, _, channels = _shape_of(value)
            value = self.builder.emit(relax.op.reshape(value, (batch, channels)))
        self._result(variable, _Tensor(value, name, rank, into))

    def _concatenation(self, variable: relax.Var, call: relax.Call) -> None:
        parts = [self.tensors[part] for part in call.args[0].fields]
        name, rank = self._derived("concatenation", *parts)
        into = self._quantisation(name)
        bounds = self._kernel("result_bounds", kernels.result_bounds, [into], _FREE)
        values = [
            self._kernel("rescale", kernels.rescaled, [part.value, self._rescaling(part, into, 1), bounds])
            for part in parts
        ]
        value = self._emitted(relax.op.concat(values, int(call.attrs.axis)), name)
        self._result(variable, _Tensor(value, name, rank, into))

    def _rescaling(self, data: _Tensor, into: relax.Var, values: int) -> relax.Var:
        arguments = [data.quantisation, into]
        return self._kernel("rescaling_parameters", kernels.rescaling_parameters, arguments, values)

    def _derived(self, what: str, *operands: _Tensor) -> tuple[str, int]:
        """The name of a result, and the number of the layer in it."""
        last = max(operands, key=lambda operand: operand.rank)
        base = last.name.split("/")[0] + f"/{what}"
        count = 1 + sum(known == base or known.startswith(f"{base}_") for known in self.quantisations)
        return (base if count == 1 else f"{base}_{count}"), last.rank

    def _result(self, variable: relax.Var, tensor: _Tensor) -> None:
        self.tensors[variable] = tensor
        self.done.add(variable)
        _log.info("%s is quantised", tensor.name)

    def _only_reader(self, variable: relax.Var) -> relax.Var | None:
        readers = self.readers.get(variable, [])
        return readers[0] if len(readers) == 1 and isinstance(self.values[readers[0]], relax.Call) else None

    def _bias_behind(self, variable: relax.Var) -> tuple[relax.Expr | None, relax.Var]:
        """What is added to the results of a layer, and that sum; else None and the results."""
        reader = self._only_reader(variable)
        if reader is None or self.values[reader].op.name != "relax.add":
            return None, variable
        (bias,) = (term for term in self.values[reader].args if not term.same_as(variable))
        if self._depends_on_image(bias) or not bias.ty.shape:
            return None, variable
        self.done.add(reader)
        self._emit_early(bias)
        return bias, reader

    def _emit_early(self, variable: relax.Expr) -> None:
        """Emits what a bias is computed from, which may stand behind the layer."""
        if variable in self.values and variable not in self.done:
            for used in relax.analysis.free_vars(self.values[variable]):
                self._emit_early(used)
            self._of_parameters(variable, self.values[variable])

    def _depends_on_image(self, value: relax.Expr) -> bool:
        if value.same_as(self.main.params[0]):
            return True
        return value in self.values and any(map(self._depends_on_image, relax.analysis.free_vars(self.values[value])))

    def _clamp_behind(self, variable: relax.Var) -> tuple[tuple[float, float], relax.Var]:
        reader = self._only_reader(variable)
        call = None if reader is None else self.values[reader]
        if call is not None and call.op.name == "relax.nn.relu":
            clamp = (0.0, math.inf)
        elif call is not None and call.op.name == "relax.clip":
            low, high = (float(bound.value) for bound in call.args[1:])
            clamp = (low, high)
        else:
            return _FREE, variable
        self.done.add(reader)
        return clamp, reader

    def _parameter(self, weight: relax.Expr) -> str:
        """The name of the parameter that a weight is computed from: the first operand of each step on the way."""
        while weight in self.values:
            weight = self.values[weight].args[0]
        return str(weight.name)

    def _emitted(self, value: relax.Expr, tensor: str) -> relax.Var:
        """A value, which dumps show by the tensor's name."""
        return self.builder.emit(value, re.sub(r"\W", "_", tensor))

    def _kernel(
        self,
        name: str,
        compute: Callable[..., _Computed],
        arguments: list[relax.Expr],
        *options: Hashable,
        tensor: str = "",
    ) -> relax.Var:
        """What the kernel that computes `compute(*arguments, *options)` gives; dumps show it by the tensor's name."""
        return self._emitted(self._call(name, compute, arguments, *options), tensor)

    def _call(
        self,
        name: str,
        compute: Callable[..., _Computed],
        arguments: list[relax.Expr],
        *options: Hashable,
        attributes: Mapping[str, Any] | None = None,
    ) -> relax.Call:
        """A call of the kernel that computes `compute(*arguments, *options)`; written once for equal shapes."""
        types = tuple((tuple(map(int, argument.ty.shape)), str(argument.ty.dtype)) for argument in arguments)

        def kernel() -> tvm.tirx.PrimFunc:
            inputs = [te.placeholder(*one, name=f"input{index}") for index, one in enumerate(types)]
            # Relax counts in int64.
            made = compute(*inputs, *options)
            results = made if isinstance(made, tuple) else (made,)
            written = te.create_prim_func([*inputs, *results], index_dtype_override="int64")
            written = written.without_attr("global_symbol").with_attr("op_pattern", _OPAQUE)
            return written.with_attrs(attributes) if attributes else written

        return self._written(name, kernel, (compute, types, options), arguments)

    def _written(
        self, name: str, kernel: Callable[[], tvm.tirx.PrimFunc], key: Hashable, arguments: list[relax.Expr]
    ) -> relax.Call:
        """A call of a kernel, which is written once for equal keys."""
        if key not in self.kernels:
            written = kernel()
            self.kernels[key] = self.builder.add_func(written, name), written
        elif key not in self.present:
            self.builder.update_func(*self.kernels[key])
        self.present.add(key)
        variable, known = self.kernels[key]
        results = [one.ty for one in known.params[len(arguments) :]]
        out_types = [relax.TensorType(tuple(map(int, one.shape)), one.dtype) for one in results]
        return relax.call_tir(variable, arguments, out_ty=out_types)


def _convolution(call: relax.Call) -> IntegerConvolution:
    """The shape of a convolution, or of a dense layer as a 1×1 convolution of one pixel an image."""
    data, weight = map(_shape_of, call.args)
    if len(weight) == 2:
        return IntegerConvolution((data[0], 1, 1, data[1]), (1, 1), weight[1])
    top, left, bottom, right = map(int, call.attrs.padding)
    (down, across), (rows, columns) = map(int, call.attrs.strides), map(int, call.attrs.dilation)
    return IntegerConvolution(
        (data[0], data[1], data[2], data[3]),
        (weight[0], weight[1]),
        weight[3],
        (down, across),
        (top, left, bottom, right),
        (rows, columns),
        int(call.attrs.groups),
    )


def _shape_of(value: relax.Expr) -> list[int]:
    return [int(extent) for extent in value.ty.shape]


def _is_product_of_vectors(value: relax.Expr) -> bool:
    is_product = isinstance(value, relax.Call) and value.op.name == "relax.multiply"
    return is_product and all(len(factor.ty.shape) == 1 for factor in value.args)


def _window(shape: IntegerConvolution) -> str:
    """How a kernel's symbol begins: packed weights do not tell its window, which a profile names it by."""
    height, width = shape.kernel
    stride = f"s{shape.strides[0]}_" if shape.strides[0] > 1 else ""
    groups = f"g{shape.groups}_" if 1 < shape.groups != shape.outputs else ""
    return f"k{height}x{width}_{stride}{groups}"
