"""What is done to a weight, in one kernel: bit for bit what NumPy makes of it, and one call for each weight."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import tvm
from folded_networks import (
    CLASSES,
    PostActivation,
    PreActivation,
    kernels_called,
    layouts_of,
    lower,
    network_with_statistics,
    pack_of,
    random_masks,
)
from operator_cases import HOST, OTHERS
from torch import nn
from tvm import relax
from unreadable_page import before_unreadable_page
from weight_rewrites import MASKS, assert_as_expected, kernel_and_expected

from ksm_hw.artifact.parameters import task_parameters
from ksm_hw.masks.mask_format import GRANULARITIES, Granularity, ScaleBits
from ksm_hw.quantising.scheme import LARGEST_BIAS, Quantisation, clamp_bounds, quantise_layer
from tvm_passes.relax import kernels
from tvm_passes.relax.kernels.integer_packing import NOTHING, IntegerPacking
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.pipeline import fold_tasks, fuse_kernels, loop_pipeline, schedule_kernels

PLAIN = tvm.target.Target("llvm")  # No AVX2: soft values are gathered one by one.

# What is done to a weight: rows that begin inside a byte, channels that fill no vector, and what fills all.
REWRITES = {
    "1×1, packed": WeightRewrite((64, 32, 1, 1), 32, 1, 32, True, 1e-3),
    "1×1, in vectors": WeightRewrite((64, 136, 1, 1), 136, 1, 16, True, 1e-3),
    "codes": WeightRewrite((64, 136, 1, 1), 136, 1, 16, True, 1e-3, coded=True),
    "codes, odd inputs": WeightRewrite((48, 37, 1, 1), 37, 1, 24, True, 1e-5, coded=True),
    "codes, a kernel a value": WeightRewrite((40, 11, 3, 3), 11, 9, 40, False, 1e-5, coded=True),
    "codes, depthwise": WeightRewrite((36, 1, 3, 3), 1, 9, 36, False, 1e-5, coded=True),
    "codes, rounded": WeightRewrite((64, 136, 1, 1), 136, 1, 16, True, 1e-3, coded=True, rounds=True),
    "codes, rounded, depthwise": WeightRewrite((36, 1, 3, 3), 1, 9, 36, False, 1e-5, coded=True, rounds=True),
    "codes, dense": WeightRewrite((20, 13), 13, 1, 20, coded=True),
    "codes, one value a row": WeightRewrite((3, 1), 1, 1, 3, coded=True),
    "zeros in the only block": WeightRewrite((58, 24, 1, 1), 24, 1, 64, True, 1e-3, zeros=6),
    "zeros in half of the last block": WeightRewrite((208, 200, 1, 1), 200, 1, 32, True, 1e-3, coded=True, zeros=16),
    "zeros, a kernel a value": WeightRewrite((116, 11, 3, 3), 11, 9, 64, True, 1e-5, zeros=12),
    "one zero": WeightRewrite((63, 20, 1, 1), 20, 1, 32, True, 1e-3, zeros=1),
    "one zero, a kernel a value": WeightRewrite((31, 5, 3, 3), 5, 9, 32, True, 1e-3, zeros=1),
    "zeros behind few channels": WeightRewrite((10, 7, 1, 1), 7, 1, 16, True, zeros=6),
    "blocks of zeros": WeightRewrite((29, 18, 3, 3), 1, 162, 24, True, 1e-5, zeros=43),
    "odd inputs": WeightRewrite((48, 37, 1, 1), 37, 1, 24, True, 1e-5),
    "few inputs": WeightRewrite((24, 3, 1, 1), 3, 1, 24, False, 1e-5),
    "odd outputs": WeightRewrite((37, 20, 1, 1), 20, 1, 37, False, 1e-5),
    "outputs of a prime block": WeightRewrite((35, 20, 1, 1), 20, 1, 7, True, None),
    "a kernel a value": WeightRewrite((40, 11, 3, 3), 11, 9, 40, False, 1e-5),
    "a kernel a value, packed": WeightRewrite((32, 64, 3, 3), 64, 9, 16, True, None),
    "elements": WeightRewrite((40, 11, 3, 3), 99, 1, 8, True, 1e-5),
    "depthwise": WeightRewrite((36, 1, 3, 3), 1, 9, 36, False, 1e-5),
    "depthwise elements": WeightRewrite((36, 1, 5, 5), 25, 1, 36, False, 1e-5),
    "channels": WeightRewrite((29, 18, 3, 3), 1, 162, 29, False, 1e-5),
    "groups": WeightRewrite((48, 20, 1, 1), 3, 8, 24, True, 1e-5),
    "groups of kernels": WeightRewrite((160, 33, 3, 3), 5, 72, 80, True, 1e-3),
    "dense": WeightRewrite((20, 13), 13, 1, 20),
    "dense channels": WeightRewrite((12, 5), 1, 5, 12),
    "one output": WeightRewrite((1, 5), 5, 1, 1),
    "one value a row": WeightRewrite((3, 1), 1, 1, 3),
    "Winograd, a kernel a value": WeightRewrite((32, 19, 3, 3), 19, 9, 16, epsilon=1e-5, tile=4),
    "Winograd, elements": WeightRewrite((24, 8, 3, 3), 72, 1, 8, epsilon=1e-5, tile=2),
    "Winograd, channels": WeightRewrite((32, 17, 3, 3), 1, 153, 32, tile=4),
    "Winograd, no mask": WeightRewrite((16, 3, 3, 3), 0, 1, 16, epsilon=1e-3, tile=4),
    "no mask": WeightRewrite((24, 50, 3, 3), 0, 1, 8, True, 1e-3),
    "layout alone": WeightRewrite((30, 50), 0, 1, 30),
}


@pytest.mark.parametrize("target", [HOST, PLAIN], ids=["host", "plain"])
@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_the_kernel_computes_what_numpy_does(rewrite: WeightRewrite, target: tvm.target.Target) -> None:
    kernel = weight_rewrite(rewrite, target).with_attr("global_symbol", "rewrite")
    compiled = tvm.compile(tvm.IRModule({"rewrite": kernel}), target=target)
    for ones, binary in MASKS.values() if rewrite.columns else [(1.0, False)]:
        arguments, expected = kernel_and_expected(rewrite, ones, binary)
        assert expected.shape == rewrite.result_shape
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
        compiled["rewrite"](*map(tvm.runtime.tensor, arguments), result)
        assert_as_expected(rewrite, result.numpy(), expected)


@pytest.mark.parametrize("target", [HOST, PLAIN], ids=["host", "plain"])
@pytest.mark.parametrize("size", [1.0, 1e-12], ids=["weights", "weights near 0"])
def test_a_kernel_quantises_a_layer_as_the_scheme_does(size: float, target: tvm.target.Target) -> None:
    """Beside weights near 0 biases have 30 bits, so that one that was rounded once too seldom is another number."""
    rewrite = WeightRewrite((37, 20, 1, 1), 0, 1, 37, False, 1e-5, integers="uint8", clamp=(0.0, 6.0), shifted=True)
    random = np.random.default_rng(0)
    weight = (random.standard_normal(rewrite.shape) * size).astype(np.float32)
    gamma, variance = random.uniform(0.5, 2, (2, 37)).astype(np.float32)
    beta, mean = random.standard_normal((2, 37)).astype(np.float32)
    data, into = Quantisation(float(np.float32(0.03)), 120), Quantisation(float(np.float32(0.07)), 3)
    quantisations = [np.array([one.scale, one.zero_point], np.float32) for one in (data, into)]
    results = [np.zeros(rewrite.result_shape, np.int8), np.zeros(37, np.float32), np.zeros(37, np.int32)]
    results.append(np.zeros(3, np.float32))
    arguments = [weight, gamma, variance, beta, mean, *quantisations, *results]
    given = [tvm.runtime.tensor(argument) for argument in arguments]

    kernel = weight_rewrite(rewrite, target).with_attr("global_symbol", "rewrite")
    tvm.compile(tvm.IRModule({"rewrite": kernel}), target=target)["rewrite"](*given)

    factor = gamma / np.sqrt(variance + np.float32(1e-5))
    layer = quantise_layer(weight * factor[:, None, None, None], beta - mean * factor, data)
    integers, multipliers, biases, bounds = (one.numpy() for one in given[-4:])
    np.testing.assert_array_equal(integers, layer.weight.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(multipliers, layer.scale / np.float32(into.scale))
    sums = layer.weight.astype(np.int32).sum((1, 2, 3))
    np.testing.assert_array_equal(biases, layer.bias - data.zero_point * sums)
    assert (np.abs(layer.bias).max() == LARGEST_BIAS) == (size != 1.0)
    assert bounds.tolist() == [into.zero_point, *clamp_bounds(0.0, 6.0, into)]


# What is quantised row by row: whole vectors, rows that end inside a step and a vector, and channels that end a task.
ROWS = {
    "codes": WeightRewrite((48, 136, 1, 1), 136, 1, 48, epsilon=1e-3, coded=True, rounds=True),
    "codes, odd": WeightRewrite((37, 45, 1, 1), 45, 1, 37, epsilon=1e-3, coded=True, rounds=True),
    "codes, few": WeightRewrite((3, 12, 1, 1), 12, 1, 3, coded=True, rounds=True),
    "numbers": WeightRewrite((29, 44, 1, 1), 44, 1, 29, epsilon=1e-3),
    "no mask, a dense layer": WeightRewrite((20, 50), 0, 1, 20),
}
ORDERS = {
    "by channels": tuple(range(64)),
    "by pairs": tuple(4 * (place % 16 // 2) + place // 16 + place % 2 * 2 for place in range(32)),
    "by bytes": tuple(4 * lane + byte for byte in range(4) for lane in range(4)),
    "steps of eight": tuple(range(32)),
}


@pytest.mark.parametrize(
    ("order", "step", "target"),
    [("by channels", 4, HOST), ("by pairs", 4, HOST), ("by bytes", 4, PLAIN), ("steps of eight", 8, HOST)],
)
@pytest.mark.parametrize("rewrite", ROWS.values(), ids=ROWS)
def test_rows_are_quantised_as_the_scheme_does(
    rewrite: WeightRewrite, order: str, step: int, target: tvm.target.Target
) -> None:
    outputs, inputs = rewrite.shape[:2]
    whole, rest = divmod(inputs, step)
    tail = [(1, *range(step * whole, inputs), *[NOTHING] * (step - rest))] if rest else []
    packing = IntegerPacking(((whole, *range(step)), *tail), ORDERS[order])
    assert packing.in_rows(inputs)
    quantised = dataclasses.replace(rewrite, integers="uint8", packing=packing)
    kernel = weight_rewrite(quantised, target).with_attr("global_symbol", "rewrite")
    compiled = tvm.compile(tvm.IRModule({"rewrite": kernel}), target=target, tir_pipeline=loop_pipeline())
    random = np.random.default_rng(3)
    bias, data = random.standard_normal(outputs).astype(np.float32), Quantisation(float(np.float32(0.03)), 120)
    for ones, binary in MASKS.values() if rewrite.columns else [(1.0, False)]:
        arguments, expected = kernel_and_expected(rewrite, ones, binary)
        results = np.zeros(packing.shape(outputs), np.int8), np.zeros(outputs, np.float32), np.zeros(outputs, np.int32)
        given = [*arguments, bias, np.array([data.scale, data.zero_point], np.float32), *results]
        given = [tvm.runtime.tensor(argument) for argument in given]

        compiled["rewrite"](*given)

        layer = quantise_layer(np.ascontiguousarray(expected.reshape(inputs, outputs).T), bias, data)
        integers, scales, biases = (one.numpy() for one in given[-3:])
        filled = np.pad(layer.weight, [(0, -outputs % packing.width), (0, -inputs % step)])
        steps = filled.reshape(-1, packing.width, packing.steps, step).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(integers, steps.reshape(*steps.shape[:2], -1)[..., list(packing.order)])
        np.testing.assert_array_equal(scales, layer.scale)
        np.testing.assert_array_equal(biases, layer.bias - data.zero_point * layer.weight.astype(np.int32).sum(1))


SHARED = {
    "rows of a vector": (WeightRewrite((32, 8, 1, 1), 8, 1, 32, True, 1e-3), [(64, 24), (96, 8), (32, 1016)]),
    "with a second thread": (WeightRewrite((480, 80, 1, 1), 80, 1, 32, True, 1e-3), [(1152, 192), (320, 1152)]),
    "rows of pages": (WeightRewrite((32, 1024, 1, 1), 1024, 1, 16, True, 1e-3), [(16, 2048), (48, 1024)]),
    "codes": (WeightRewrite((24, 96, 1, 1), 96, 1, 24, True, 1e-3, coded=True), [(24, 8), (48, 640)]),
    "no mask": (WeightRewrite((64, 16, 1, 1), 0, 1, 16, True), [(16, 40), (32, 8)]),
}


@pytest.mark.parametrize("target", [HOST, PLAIN], ids=["host", "plain"])
@pytest.mark.parametrize(("rewrite", "others"), SHARED.values(), ids=SHARED)
def test_one_kernel_serves_many_numbers_of_channels(
    rewrite: WeightRewrite, others: list[tuple[int, int]], target: tvm.target.Target
) -> None:
    kernel = weight_rewrite(rewrite.shared, target).with_attr("global_symbol", "rewrite")
    compiled = tvm.compile(tvm.IRModule({"rewrite": kernel}), target=target)
    for outputs, inputs in [rewrite.shape[:2], *others]:
        columns = inputs if rewrite.columns else 0
        other = dataclasses.replace(rewrite, shape=(outputs, inputs, 1, 1), columns=columns)
        if (outputs * inputs < 32768) == (math.prod(rewrite.shape) < 32768):
            assert other.shared == rewrite.shared
        arguments, expected = kernel_and_expected(other, 0.7, binary=False)
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
        compiled["rewrite"](*map(tvm.runtime.tensor, arguments), result)
        assert_as_expected(rewrite, result.numpy(), expected)


def test_kernels_that_differ_are_not_shared() -> None:
    rewrite = WeightRewrite((64, 32, 1, 1), 32, 1, 16, True, 1e-3)
    alone = [
        dataclasses.replace(rewrite, shape=(64, 36, 1, 1), columns=36),  # Rows that fill no vectors.
        dataclasses.replace(rewrite, columns=1, run=32),
        dataclasses.replace(rewrite, packed=False, lanes=64),
        WeightRewrite((64, 32, 3, 3), 288, 1, 16, True, 1e-3),
    ]
    assert all(other.shared == other for other in alone)
    changes = [{"lanes": 32}, {"epsilon": None}, {"coded": True}, {"columns": 0}]
    changes += [{"shape": (64, 1024, 1, 1), "columns": 1024}, {"shape": (1024, 32, 1, 1)}]
    kinds = {dataclasses.replace(rewrite, **change).shared for change in changes}
    assert len(kinds | {rewrite.shared}) == len(changes) + 1


def test_the_code_in_the_docstring_is_what_is_emitted() -> None:
    script = weight_rewrite(WeightRewrite((1, 8), 8, 1, 1), PLAIN).script()
    emitted = "".join(line for line in "".join(script.split("# ")).split())
    shown = "".join(kernels.weight_rewrite.__doc__.partition("more of the same):")[2].split()).split("…")
    place = 0
    for part in shown:
        place = emitted.find(part, place)
        assert place >= 0, part
        place += len(part)
    assert len(shown) > 3 and len("".join(shown)) > len(emitted) / 3


# Whole cache lines each, because TVM aligns its arrays so.
GUARDED = {
    "1×1": WeightRewrite((64, 40, 1, 1), 40, 1, 32, True, 1e-5),
    "rows that begin inside a byte": WeightRewrite((128, 20, 1, 1), 20, 1, 32, True, 1e-5),
    "rows of 9": WeightRewrite((512, 1, 3, 3), 1, 9, 512, False, 1e-5),
    "Winograd, rows of 27": WeightRewrite((512, 3, 3, 3), 3, 9, 16, epsilon=1e-3, tile=4),
}


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", GUARDED)
def test_nothing_is_read_behind_the_end(name: str, coded: bool) -> None:
    rewrite = dataclasses.replace(GUARDED[name], coded=coded)
    arguments, expected = kernel_and_expected(rewrite, 0.0, binary=False)
    kernel = weight_rewrite(rewrite, HOST).with_attr("global_symbol", "rewrite")
    compiled = tvm.compile(tvm.IRModule({"rewrite": kernel}), target=HOST)
    assert all(argument.nbytes % 64 == 0 for argument in arguments[:4])  # All but the range of soft values.
    guarded = [
        tvm.runtime.from_dlpack(before_unreadable_page(argument))
        if argument.nbytes % 64 == 0
        else tvm.runtime.tensor(argument)
        for argument in arguments
    ]
    result = tvm.runtime.tensor(np.zeros(expected.shape, np.float32))
    compiled["rewrite"](*guarded, result)
    assert_as_expected(rewrite, result.numpy(), expected)


class Plain(nn.Module):
    """A masked convolution without a BatchNorm, whose weight two convolutions of other layouts read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 24, 3), nn.Linear(24, CLASSES)

    def forward(self, images):  # type: ignore[no-untyped-def]
        twice = nn.functional.conv2d(images, self.first.weight, dilation=2).mean((2, 3))
        return self.head(self.first(images).relu().mean((2, 3)) + twice)


def rewrites(
    network: nn.Module, granularity: Granularity, scale_bits: ScaleBits = 32
) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """The folded module of a network with random masks, and the parameters of its rewrite function."""
    masks = random_masks(network, granularity, scale_bits)
    module, functions = fold_tasks(lower(network), {"test": layouts_of(masks, granularity)}, HOST)
    tensors = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    names = functions["test"].parameters
    return module, list(task_parameters(names, pack_of(network, masks, granularity), tensors, CLASSES))


def rewritten(module: tvm.IRModule, arrays: list[np.ndarray]) -> list[np.ndarray]:
    machine = relax.VirtualMachine(tvm.compile(module, target=HOST), tvm.cpu())
    return [tensor.numpy() for tensor in machine["rewrite_weights_test"]([*map(tvm.runtime.tensor, arrays)])]


@pytest.mark.parametrize(
    ("network", "granularity", "scale_bits"),
    [
        (PostActivation, "element", 32),
        *(
            pytest.param(PostActivation, granularity, 32, marks=pytest.mark.slow)
            for granularity in GRANULARITIES
            if granularity != "element"
        ),
        (PostActivation, "kernel", 8),
        (PostActivation, "group", 4),
        (PreActivation, "kernel", 32),
        (Plain, "element", 32),
    ],
)
def test_weights_are_those_of_the_ops(
    network: type[nn.Module], granularity: Granularity, scale_bits: ScaleBits
) -> None:
    module, arrays = rewrites(network_with_statistics(network()), granularity, scale_bits)
    expected = rewritten(module, arrays)
    found = rewritten(schedule_kernels(module, HOST), arrays)
    assert [array.shape for array in found] == [array.shape for array in expected]
    for array, other in zip(found, expected, strict=True):
        assert np.allclose(array, other, rtol=1e-6, atol=0)


def rewriting_kernels(module: tvm.IRModule) -> Counter[str]:
    """How often the rewrite function calls which kernels, without the numbers behind their names."""
    return Counter(name.rstrip("0123456789") for name in kernels_called(module["rewrite_weights_test"]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_weight_is_one_kernel(granularity: Granularity) -> None:
    module, _ = rewrites(network_with_statistics(PostActivation()), granularity)
    found = rewriting_kernels(fuse_kernels(module, HOST))
    # Three convolutions, two linear layers, of which the head has no mask; the others are biases of convolutions.
    assert found.pop("rewrite_weight") == 5
    assert sum(found.values()) == 3 and all("subtract" in name for name in found)


def test_other_targets_keep_their_kernels() -> None:
    module, _ = rewrites(network_with_statistics(PostActivation()), "kernel")
    target = tvm.target.Target({"kind": "opencl", "host": "llvm"})
    assert rewriting_kernels(fuse_kernels(module, target))["rewrite_weight"] == 0


@pytest.mark.parametrize("target", OTHERS.values(), ids=OTHERS)
def test_kernels_compile_for_other_cpus(target: tvm.target.Target) -> None:
    module, _ = rewrites(network_with_statistics(PostActivation()), "kernel")
    tvm.compile(schedule_kernels(module, target), target=target)
