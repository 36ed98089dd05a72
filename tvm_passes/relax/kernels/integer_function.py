"""The function around an int8 kernel's loops: its arguments, and the rows of values that loops read and write."""

import math
from collections.abc import Callable
from dataclasses import asdict

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_results import Requantisation
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors
from tvm_passes.relax.kernels.written_function import ATTRIBUTES, root_block

CONVOLUTION = "integer_convolution"
"""The annotation of a description's root block: the fields of its `IntegerConvolution`."""


def integer_function(
    name: str,
    shape: IntegerConvolution,
    vectors: IntegerVectors,
    weight_shape: tuple[int, ...],
    channels: int,
    emit: Callable[..., None] | None,
    real: bool = False,
) -> tirx.PrimFunc:
    """A function of loops that are written out; or described, for `integer_kernel` to choose and write them.

    It takes data, uint8; a packed weight; packed vectors of bias, int32, and multiplier, float32; the quantisation of
    the data, float32 [2]; unless it is `real` the bounds of the result, float32 [3]; and writes the result: uint8, or
    where it is `real` float32, the sums times the multipliers.

    Args:
        name: of the function.
        shape: of the convolution.
        vectors: of the CPU.
        weight_shape: of the packed weight.
        channels: of the packed vectors.
        emit: writes the loops; it gets data, weight, bias, multiplier, quantisation, the `Requantisation` or None, and
            the result; data, weight and result each as one row of values. None for a description: no loops, and the
            shape as the root block's annotation `CONVOLUTION`.
        real: whether the result is float32.
    """
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name(name)
        attributes = {"op_pattern": 8, "tirx.noalias": True} if emit is None else ATTRIBUTES
        T.func_attr({**attributes, "flops": 2 * shape.products})
        data = T.arg("data", T.buffer(shape.data, vectors.data_type))
        weight = T.arg("weight", T.buffer(weight_shape, "int8"))
        bias = T.arg("bias", T.buffer((channels,), "int32"))
        multiplier = T.arg("multiplier", T.buffer((channels,), "float32"))
        quantisation = T.arg("quantisation", T.buffer((2,), "float32"))
        bounds = None if real else T.arg("bounds", T.buffer((3,), "float32"))
        result = T.arg("result", T.buffer(shape.result, "float32" if real else vectors.data_type))
        with root_block():
            if emit is None:
                T.sblock_attr({CONVOLUTION: asdict(shape)})
                T.evaluate(0)
            else:
                flat = T.decl_buffer((math.prod(shape.data),), data.dtype, data=data.data)
                weights = T.decl_buffer((math.prod(weight_shape),), "int8", data=weight.data)
                written = T.decl_buffer((math.prod(shape.result),), result.dtype, data=result.data)
                requantisation = None if bounds is None else Requantisation(vectors, bounds)
                emit(flat, weights, bias, multiplier, quantisation, requantisation, written)
    return builder.get()
