"""Kernels of convolutions compute in the type of their tensors."""

import re

import pytest
from tvm import te

from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.kernels.winograd import POINTS, convolution, transform_weight


def types_in(*tensors: te.Tensor) -> set[str]:
    """The types of real numbers that a kernel speaks of."""
    return set(re.findall(r"float\d+", te.create_prim_func([*tensors]).script()))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("tile", POINTS)
def test_winograd_computes_in_the_type_of_its_tensors(tile: int, dtype: str) -> None:
    weight, data = te.placeholder((3, 3, 4, 8), dtype), te.placeholder((1, 9, 9, 4), dtype)
    transformed = transform_weight(weight, tile, 8)
    assert types_in(weight, transformed) == {dtype}
    ready = te.placeholder(transformed.shape, dtype)
    assert types_in(data, ready, convolution(data, ready, tile, (1, 1, 1, 1))) == {dtype}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_packed_convolution_computes_in_the_type_of_its_tensors(dtype: str) -> None:
    data, weight = te.placeholder((1, 9, 9, 4), dtype), te.placeholder((1, 3, 3, 4, 8), dtype)
    result = packed_convolution(data, weight, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    function = te.create_prim_func([data, weight, result])
    assert {str(parameter.ty.dtype) for parameter in function.params} == {dtype}
    assert types_in(data, weight, result) == ({dtype} if dtype.startswith("float") else set())
