"""A 1×1 convolution and the depthwise one behind it as one function: when, and that it computes torch's result."""

import dataclasses

import numpy as np
import pytest
import torch
import tvm
from operator_cases import HOST, OTHERS, function, values
from torch.nn import functional
from tvm import relax
from tvm.target import Target
from tvm.tirx import PrimFunc

from tvm_passes.relax.fuse_expansions import FuseExpansions
from tvm_passes.relax.pipeline import fuse_kernels, loop_pipeline, schedule_kernels
from tvm_passes.relax.schedules.cpu.expanded_depthwise import ExpandedDepthwise, Expansion
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit
from tvm_passes.relax.weight_layouts import WeightLayouts

AVX512 = OTHERS["avx512"]


def network(side, inputs, expanded, window, stride, join=None, factor=None):
    """A 1×1 convolution and a depthwise one, each with bias and clip; and the shapes of what it takes.

    `join` makes one of both results; `factor` makes of the bias what the first one is multiplied by.
    """

    def compute(emit, x, w, b, w2, b2):
        first = relax.op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO")
        sums = emit(first)
        if factor is not None:
            sums = emit(relax.op.multiply(sums, emit(factor(b))))
        middle = emit(relax.op.clip(emit(relax.op.add(sums, b)), 0, 6))
        second = emit(
            relax.op.nn.conv2d(
                middle, w2, stride, window // 2, groups=expanded, data_layout="NHWC", kernel_layout="HWIO"
            )
        )
        result = emit(relax.op.clip(emit(relax.op.add(second, b2)), 0, 6))
        return result if join is None else join(result, middle)

    shapes = (
        (1, side, side, inputs),
        (1, 1, inputs, expanded),
        (1, 1, 1, expanded),
        (window, window, 1, expanded),
        (1, 1, 1, expanded),
    )
    return function(compute, *shapes), shapes


def torchs(arrays, stride):
    """The result of `network` by torch, NHWC."""
    x, w, b, w2, b2 = map(torch.from_numpy, arrays)
    middle = (functional.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1)) + b.permute(0, 3, 1, 2)).clip(0, 6)
    padding, groups = w2.shape[0] // 2, w2.shape[3]
    sums = functional.conv2d(middle, w2.permute(3, 2, 0, 1), None, stride, padding, 1, groups)
    return (sums + b2.permute(0, 3, 1, 2)).clip(0, 6).permute(0, 2, 3, 1).numpy()


def joined(module: tvm.IRModule, unit: VectorUnit, target: Target) -> PrimFunc | None:
    """The function that a pair became; None if it stays two."""
    passes = [
        WeightLayouts(unit),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        FuseExpansions(unit),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    with target:
        module = tvm.transform.Sequential(passes)(module)
    found = [one for one in module.functions.values() if isinstance(one, PrimFunc)]
    return next((one for one in found if ExpandedDepthwise().match(one, target) is not None), None)


@pytest.mark.parametrize(("window", "stride", "rows"), [(3, 1, 4), (3, 2, 2), (5, 1, 5), (5, 2, 1)])
def test_one_function_computes_what_torch_does(window, stride, rows):
    unit = vector_unit(HOST)
    lanes = unit.lanes("float32")
    module, shapes = network(20, 5, 4 * lanes, window, stride)
    func = joined(module, dataclasses.replace(unit, cache_bytes=18 * 20 * 4 * lanes * 4), HOST)
    assert func is not None
    arrays = values(*shapes)
    arrays[0] *= 2
    matched = ExpandedDepthwise().match(func, HOST)
    assert matched is not None
    schedule, pair = matched
    tile_channels = int(func.params[1].ty.shape[-1])
    way = Expansion(rows, tile_channels, 4, tile_channels, 4 // stride, lanes)
    ExpandedDepthwise().apply_way(schedule, pair, way, HOST)
    code = tvm.tirx.build(schedule.mod["main"].with_attr("global_symbol", "main"), HOST, loop_pipeline())
    packed = arrays[1].reshape(5, -1, tile_channels).transpose(1, 0, 2).reshape(-1, 1, 1, 5, tile_channels)
    expected = torchs(arrays, stride)
    result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
    code(*(tvm.runtime.tensor(np.ascontiguousarray(one)) for one in (arrays[0], packed, *arrays[2:])), result)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=2e-5)
    assert 0 < np.mean(expected > 0) < 1


def test_a_map_that_leaves_the_cache_becomes_a_part_of_one_function():
    unit = vector_unit(AVX512)
    module, _ = network(56, 24, 144, 3, 1)
    fused = fuse_kernels(WeightLayouts(unit)(module), AVX512)
    (func,) = (one for one in fused.functions.values() if isinstance(one, PrimFunc) and len(one.params) == 6)
    for candidate in ExpandedDepthwise().candidates(func, AVX512):
        way = candidate.way
        assert (way.rows + 2) * 56 * way.channels * 4 < unit.cache_bytes
        assert 56 // way.rows * (144 // way.channels) >= unit.cores
    scheduled = schedule_kernels(WeightLayouts(unit)(module), AVX512)
    (flops,) = (int(one.attrs["flops"]) for one in scheduled.functions.values() if len(one.params) == 6)
    # Of each value of the map between and of the result: products and sums, a bias and two comparisons.
    assert flops == 56 * 56 * 144 * (2 * 24 + 3 + 2 * 9 + 3)


@pytest.mark.parametrize("cores", [1, 2, 8, 96])
@pytest.mark.parametrize("case", [(56, 24, 144, 3, 1), (112, 16, 96, 3, 2), (224, 16, 96, 7, 2)])
def test_it_has_a_way_for_any_number_of_cores(case, cores):
    target = Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": cores})
    module, _ = network(*case)
    func = joined(module, vector_unit(target), target)
    assert func is not None
    schedule, pair = ExpandedDepthwise().match(func, target)
    assert next(iter(ExpandedDepthwise().ways(schedule, pair, target)), None) is not None


@pytest.mark.parametrize(
    ("case", "mcpu", "operators"),
    [
        ((28, 32, 192, 3, 1), "skylake-avx512", {}),
        ((56, 24, 144, 3, 1), "haswell", {}),
        ((56, 24, 144, 3, 1), "skylake-avx512", {"join": lambda *both: relax.op.concat(both, 3)}),
        ((56, 24, 144, 3, 1), "skylake-avx512", {"join": relax.op.add}),
        ((56, 24, 144, 3, 1), "skylake-avx512", {"factor": relax.op.sigmoid}),
        ((112, 16, 88, 3, 1), "skylake-avx512", {}),
        ((1024, 3, 48, 3, 2), "skylake-avx512", {}),
        ((224, 8, 96, 31, 1), "skylake-avx512", {}),
    ],
    ids=[
        "a small map",
        "an unknown cache",
        "a map that is read twice",
        "a map that is added to the result, in the depthwise convolution's function",
        "a factor of each channel, computed in the 1×1 convolution's function",
        "vectors that do not divide the channels",
        "rows too long for the cache",
        "a window too high for the cache",
    ],
)
def test_two_functions_stay_two(case, mcpu, operators):
    target = Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 1})
    module, _ = network(*case, **operators)
    fused = fuse_kernels(WeightLayouts(vector_unit(target))(module), target)
    functions = [one for one in fused.functions.values() if isinstance(one, PrimFunc)]
    assert len(functions) >= 2 and all(ExpandedDepthwise().match(one, target) is None for one in functions)
