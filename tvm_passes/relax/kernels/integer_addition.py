"""The sum of two tensors of bytes, in vectors: what `quantised.addition` states, to the last bit.

That multiplies int32 by int32, which takes a CPU several times as long as float32, and rounds the sum when it becomes a
float32. Here all are float32 from the start. An operand less its zero point is at most 255, and its factor at most
2^16, so that their product is exact; and the sum of two such is rounded once, fused with a product or not.
"""

import math

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_results import PACKED
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors
from tvm_passes.relax.kernels.written_function import ATTRIBUTES, root_block

_OF_TASK = 8 << 10  # Bytes that are worth a second core.


def fills_vectors(shape: tuple[int, ...], vectors: IntegerVectors) -> bool:
    """Whether tensors of a shape have as many values as become bytes together."""
    return math.prod(shape) >= PACKED * vectors.lanes


def integer_addition(shape: tuple[int, ...], vectors: IntegerVectors, cores: int) -> tirx.PrimFunc:
    """A function of two tensors, parameters and bounds, that writes the sum.

    It takes the bytes, and writes them, as `vectors.data_type`; the parameters, float32 [5], are those of
    `quantised.addition_parameters`, and the bounds, float32 [3], those of `quantised.result_bounds`.

    Args:
        shape: of the tensors, which `fills_vectors`.
        vectors: of the CPU.
        cores: that share the work.
    """
    count, width = math.prod(shape), PACKED * vectors.lanes
    whole = count // width
    of_task = -(-whole // max(1, min(4 * cores, count // _OF_TASK)))
    tasks = -(-whole // of_task)
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("add")
        T.func_attr(ATTRIBUTES)
        operands = [T.arg(name, T.buffer(shape, vectors.data_type)) for name in ("left", "right")]
        parameters = T.arg("parameters", T.buffer((5,), "float32"))
        bounds = T.arg("bounds", T.buffer((3,), "float32"))
        result = T.arg("result", T.buffer(shape, vectors.data_type))
        with root_block():
            left, right, written = (T.decl_buffer((count,), one.dtype, data=one.data) for one in (*operands, result))
            with (T.serial if tasks == 1 else T.parallel)(tasks) as task:
                limits = [T.bind(bounds[place]) for place in range(3)]
                zeros = [T.bind(vectors.stored(parameters[place])) for place in (0, 2)]
                factors = [T.bind(parameters[place]) for place in (1, 3)]
                multiplier = T.bind(parameters[4])

                def product(start: tirx.Expr) -> tirx.Expr:
                    lanes = vectors.lanes
                    of_left, of_right = (
                        (T.cast(one[T.ramp(start, 1, lanes)], f"float32x{lanes}") - T.broadcast(zero, lanes))
                        * T.broadcast(factor, lanes)
                        for one, zero, factor in zip((left, right), zeros, factors, strict=True)
                    )
                    return T.bind((of_left + of_right) * T.broadcast(multiplier, lanes))

                def add(start: tirx.Expr) -> None:
                    products = [product(start + number * vectors.lanes) for number in range(PACKED)]
                    T.buffer_store(written, vectors.requantised(products, limits), [T.ramp(start, 1, width)])

                first = T.bind(task * of_task)
                with T.serial(tirx.min(T.int32(of_task), whole - first)) as number:
                    add(T.bind((first + number) * width))
                if count % width:
                    # The last vector is of some values that are done already.
                    with T.If(task == tasks - 1), T.Then():
                        add(T.int32(count - width))
    return builder.get()
