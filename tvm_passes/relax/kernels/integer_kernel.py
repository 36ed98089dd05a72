"""A convolution of bytes: described at first, and written as loops when one of its ways is chosen.

A description is a function with the kernel's parameters and no loops. Its root block is annotated with the convolution
(`integer_function.CONVOLUTION`), and by a rule or a record with the way (`WAY`). So records of tunes name what is
computed, and not how some version of this program wrote it.
"""

from collections.abc import Iterator
from dataclasses import astuple, fields
from typing import Any, TypeAlias

from tvm import te, tirx
from tvm.s_tir import SBlockRealize

from tvm_passes.relax.kernels import integer_convolution as convolution
from tvm_passes.relax.kernels import integer_depthwise as depthwise
from tvm_passes.relax.kernels.integer_convolution import Tiling, integer_convolution, is_tiling, tilings
from tvm_passes.relax.kernels.integer_depthwise import Strip, integer_depthwise, is_strip, strips
from tvm_passes.relax.kernels.integer_function import CONVOLUTION
from tvm_passes.relax.kernels.integer_packing import IntegerPacking
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

Way: TypeAlias = Tiling | Strip

WAY = "way"
"""The annotation of a description's root block: the numbers of its way."""


def packing(shape: IntegerConvolution, vectors: IntegerVectors) -> IntegerPacking:
    """How the kernel reads its weight."""
    return (depthwise if shape.is_depthwise else convolution).packing(shape, vectors)


def packed_weight(weight: te.Tensor, shape: IntegerConvolution, vectors: IntegerVectors) -> te.Tensor:
    """A quantised weight, int8 [kH, kW, I, O], as `packing` says."""
    return (depthwise if shape.is_depthwise else convolution).packed_weight(weight, shape, vectors)


def integer_kernel(
    shape: IntegerConvolution, vectors: IntegerVectors, way: Way | None, real: bool = False
) -> tirx.PrimFunc:
    """A kernel, as `integer_function` gives it: written in a way, or without one described."""
    vectors = shape.instructions(vectors)
    if shape.is_depthwise:
        assert not isinstance(way, Tiling) and not real
        return integer_depthwise(shape, vectors, way)
    assert not isinstance(way, Strip)
    return integer_convolution(shape, vectors, way, real)


def described_convolution(function: tirx.PrimFunc) -> IntegerConvolution | None:
    """What a description is of; None of any other function."""
    if not isinstance(function.body, SBlockRealize) or CONVOLUTION not in function.body.block.annotations:
        return None
    fields: dict[str, Any] = {
        name: int(value) if isinstance(value, int) else tuple(map(int, value))
        for name, value in function.body.block.annotations[CONVOLUTION].items()
    }
    return IntegerConvolution(**fields)


def ways(shape: IntegerConvolution, vectors: IntegerVectors, cores: int) -> Iterator[Way]:
    """The ways that are worth a measurement, the one that is likely fastest first."""
    vectors = shape.instructions(vectors)
    return (strips if shape.is_depthwise else tilings)(shape, vectors, cores)


def numbers_of(way: Way) -> list[int]:
    """What `WAY` has of a way."""
    return list(astuple(way))


def noted_way(function: tirx.PrimFunc, shape: IntegerConvolution, vectors: IntegerVectors) -> Way:
    """The way that a description's root block notes.

    Raises:
        ValueError: it is none of the kernel's.
    """
    kind: type[Way] = Strip if shape.is_depthwise else Tiling
    noted = function.body.block.annotations.get(WAY)
    try:
        numbers = [*map(int, noted)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == len(fields(kind)) and min(numbers) > 0:
        way, vectors = kind(*numbers), shape.instructions(vectors)
        if is_strip(shape, vectors, way) if isinstance(way, Strip) else is_tiling(shape, vectors, way):
            return way
    raise ValueError(f"{noted} is no way to compute {shape}")


def written(function: tirx.PrimFunc, vectors: IntegerVectors) -> tirx.PrimFunc:
    """The kernel of a description whose way was chosen; all other functions as they are.

    Raises:
        ValueError: as `noted_way`.
    """
    shape = described_convolution(function)
    if shape is None:
        return function
    way = noted_way(function, shape, vectors)
    kernel = integer_kernel(shape, vectors, way, real=str(function.params[-1].ty.dtype) == "float32")
    return kernel.with_attrs(dict(function.attrs))
