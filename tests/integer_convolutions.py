"""Convolutions of integers by the kernels of a CPU, and what NumPy makes of the same."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from kernel_cases import Case
from tvm import te
from tvm.ir.transform import Sequential

from tvm_passes.relax.kernels.integer_convolution import packed_vector
from tvm_passes.relax.kernels.integer_kernel import integer_kernel, packed_weight, packing, ways
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors, integer_vectors
from tvm_passes.relax.schedules.cpu.integer_kernel import IntegerKernel
from tvm_passes.relax.write_integer_kernels import WriteIntegerKernels

SHAPES = {
    "first layer": IntegerConvolution((1, 16, 18, 3), (3, 3), 24, (2, 2), (1, 0, 1, 1)),
    "seventeen": IntegerConvolution((2, 9, 11, 17), (3, 3), 37, (2, 1), (1, 1, 1, 1)),
    "five to forty": IntegerConvolution((2, 5, 6, 5), (1, 1), 40),
    "flat with a rest": IntegerConvolution((2, 5, 7, 16), (1, 1), 40),
    "strided 1x1": IntegerConvolution((1, 9, 11, 64), (1, 1), 80, (2, 2)),
    "no padding": IntegerConvolution((1, 7, 9, 8), (5, 5), 16),
    "dilated": IntegerConvolution((1, 9, 11, 12), (5, 5), 16, (1, 1), (2, 2, 2, 2), (2, 2)),
    "grouped": IntegerConvolution((1, 6, 7, 20), (3, 3), 36, (1, 1), (1, 1, 1, 1), groups=4),
    "dense": IntegerConvolution((3, 1, 1, 100), (1, 1), 50),
    "depthwise": IntegerConvolution((2, 5, 15, 17), (3, 3), 17, (1, 1), (1, 1, 1, 1), groups=17),
    "depthwise, narrow": IntegerConvolution((1, 5, 4, 17), (3, 3), 17, (1, 1), (1, 1, 1, 1), groups=17),
    "depthwise, strided": IntegerConvolution((1, 9, 11, 32), (3, 3), 32, (2, 2), (0, 0, 1, 1), groups=32),
    "depthwise 5x5": IntegerConvolution((1, 8, 9, 24), (5, 5), 24, (2, 2), (2, 1, 2, 2), groups=24),
    "depthwise, dilated": IntegerConvolution((1, 9, 11, 5), (3, 3), 5, (1, 1), (2, 2, 2, 2), (2, 2), groups=5),
}
ZERO_POINT, BOUNDS, CORES = 117, (3, 5, 250), 2


def cases(vectors: IntegerVectors, names: Iterable[str] = SHAPES) -> dict[str, Case]:
    """Shapes; the sums of the dense layer stay real values, and of one layer some are too large for any integer."""
    return {name: _case(name, vectors) for name in names}


def cases_in_other_ways(target: tvm.target.Target, name: str, every: int) -> dict[str, Case]:
    """A shape in every so manieth way that its kernel can be written in, but the first."""
    vectors = integer_vectors(target)
    assert vectors is not None
    case = _case(name, vectors)
    description = integer_kernel(SHAPES[name], vectors, None, name == "dense")
    candidates = list(IntegerKernel().candidates(description, target))
    assert len({candidate.way for candidate in candidates}) == len(candidates) > 1
    with target:
        modules = [
            Sequential([WriteIntegerKernels()])(candidate.schedule.mod) for candidate in candidates[every - 1 :: every]
        ]
    return {
        f"{name} {number}": dataclasses.replace(case, kernel=module["main"]) for number, module in enumerate(modules)
    }


def _case(name: str, vectors: IntegerVectors) -> Case:
    shape, real = SHAPES[name], name == "dense"
    vectors = shape.instructions(vectors)
    way = next(ways(shape, vectors, CORES))
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, shape.data, np.uint8)
    # The largest products that there are stand somewhere, next to each other.
    data[0, 2:] = 255 if shape.data[1] > 1 else data[0, 2:]
    weight = generator.integers(-127, 128, (*shape.kernel, shape.inputs, shape.outputs)).astype(np.int8)
    weight[..., 1] = 127
    bias = generator.integers(-5000, 5000, shape.outputs).astype(np.int32)
    multiplier = (generator.uniform(0.5, 2, shape.outputs) * 0.01 / np.sqrt(weight[..., 0].size)).astype(np.float32)
    multiplier[0] *= 2.0**40 if name == "no padding" else 1
    products = _sums(shape, data, weight, bias).astype(np.float32) * multiplier
    zero, low, high = map(np.float32, BOUNDS)
    quantised = np.clip(np.rint(products) + zero, low, high).astype(np.uint8)
    expected = products if real else _stored(quantised, vectors)
    packed_as = packing(shape, vectors)
    if vectors.data_type == "int8":
        # The data is 128 less.
        bias += 128 * weight.astype(np.int32).sum((0, 1, 2))
    bounds = [] if real else [np.array(BOUNDS, np.float32)]
    quantisation = np.array([0.1, ZERO_POINT], np.float32)
    packed, *filled = _computed(
        lambda weight, *of_channels: [
            packed_weight(weight, shape, vectors),
            *(packed_vector(one, packed_as.groups, packed_as.width) for one in of_channels),
        ],
        [weight, bias, multiplier],
    )
    result = np.zeros_like(expected)
    kernel = integer_kernel(shape, vectors, way, real)
    return Case(kernel, [_stored(data, vectors), packed, *filled, quantisation, *bounds, result], expected)


def _sums(
    shape: IntegerConvolution, data: npt.NDArray[np.uint8], weight: npt.NDArray[np.int8], bias: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """float64 holds these sums as they are."""
    top, left, bottom, right = shape.padding
    padded = np.pad(data.astype(np.float64) - ZERO_POINT, ((0, 0), (top, bottom), (left, right), (0, 0)))
    images, kernels = padded.transpose(0, 3, 1, 2), weight.astype(np.float64).transpose(3, 2, 0, 1)
    options = {"stride": shape.strides, "dilation": shape.dilation, "groups": shape.groups}
    sums = torch.nn.functional.conv2d(torch.tensor(images), torch.tensor(kernels), **options)
    of_zero = ZERO_POINT * weight.astype(np.int32).sum((0, 1, 2))
    return sums.numpy().transpose(0, 2, 3, 1).astype(np.int32) + of_zero.astype(np.int32) + bias


def _stored(quantised: npt.NDArray[np.uint8], vectors: IntegerVectors) -> npt.NDArray[Any]:
    return quantised if vectors.data_type == "uint8" else (quantised.astype(np.int16) - 128).astype(np.int8)


def _computed(compute: Callable[..., list[te.Tensor]], arrays: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """What tensor expressions make of arrays."""
    inputs = [te.placeholder(array.shape, str(array.dtype), name="input") for array in arrays]
    function = te.create_prim_func([*inputs, *compute(*inputs)])
    types = [parameter.ty for parameter in function.params[len(arrays) :]]
    results = [tvm.runtime.tensor(np.zeros([int(one) for one in type_.shape], str(type_.dtype))) for type_ in types]
    tvm.compile(function, target="llvm")(*map(tvm.runtime.tensor, arrays), *results)
    return [result.numpy() for result in results]
