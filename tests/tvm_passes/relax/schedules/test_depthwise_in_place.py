"""Depthwise convolutions that read the map as it lies: no copy of it, no product with padding, and torch's result."""

import numpy as np
import pytest
import tvm
from operator_cases import HOST, OTHERS, convolution_case, lowered
from tvm.target import Target
from tvm.tirx import PrimFunc

from tvm_passes.relax.loops.skip_padding import SkipPadding
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution, sharings
from tvm_passes.relax.schedules.cpu.tile_model import TASKS
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

# Batch, height, width, channels in and out, window, stride, padding (top, left, bottom, right), dilation, groups.
CASES = {
    "3×3": (1, 8, 8, 16, 16, 3, 1, (1, 1, 1, 1), 1, 16, ""),
    "stride 2, uneven padding": (1, 8, 12, 32, 32, 5, 2, (1, 2, 2, 1), 1, 32, ""),
    "dilated, batch 2": (2, 7, 7, 16, 16, 3, 1, (2, 2, 2, 2), 2, 16, ""),
    "no padding": (1, 6, 10, 16, 16, 3, 1, (0, 0, 0, 0), 1, 16, ""),
}


def in_place(case, target):
    """The modules that compute in place a case with bias, residual and relu, its arrays and torch's result."""
    module, arrays, expected = convolution_case(case, True)
    (function,) = (one for one in lowered(module, target).functions.values() if isinstance(one, PrimFunc))
    ways = DepthwiseConvolution().candidates(function, target)
    modules = [one.schedule.mod for one in ways if not one.way.copied]
    named = [tvm.IRModule({"main": one["main"].with_attr("global_symbol", "main")}) for one in modules]
    return named, arrays, expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_way_computes_what_torch_does(case):
    modules, arrays, expected = in_place(case, HOST)
    assert modules
    inputs = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
    for module in modules:
        code = tvm.tirx.build(module, target=HOST, pipeline=loop_pipeline())
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
        code["main"](*inputs, result)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=2e-5)


def test_nothing_is_copied_and_what_is_multiplied_by_padding_is_left_out():
    (module, *_), _, _ = in_place(CASES["3×3"], OTHERS["avx512"])
    text = SkipPadding()(module).script()
    assert "pad_temp" not in text and "if_then_else" in module.script() and "if_then_else" not in text


def test_sums_stay_in_registers():
    (module, *_), _, _ = in_place((1, 28, 28, 32, 32, 3, 1, (1, 1, 1, 1), 1, 32, ""), OTHERS["avx512"])
    text = tvm.tirx.build(module, target=OTHERS["avx512"], pipeline=loop_pipeline()).inspect_source("ll")
    assert "alloca [" not in text and "alloca <" not in text


@pytest.mark.parametrize("mcpu", ["haswell", "znver4", "skylake-avx512", "x86-64"])
@pytest.mark.parametrize(("side", "channels"), [(112, 96), (14, 384), (7, 960)])
def test_every_core_has_tasks_enough(mcpu, side, channels):
    unit = vector_unit(Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}))
    first = sharings([1, side, side, channels], (side + 2, side + 2), 3, unit, "float32")[0]
    assert not first.copied
    assert side // first.rows * (channels // first.channels) >= TASKS * unit.cores


@pytest.mark.parametrize(
    ("side", "channels", "window", "expected"),
    [
        (56, 144, 3, 144),
        (112, 96, 3, 96),
        (14, 384, 3, 192),
        (14, 576, 3, 192),
        (28, 240, 5, 80),
        (28, 192, 3, 96),
        (7, 960, 3, 320),
    ],
)
def test_tasks_take_so_many_channels_that_rows_stay_near_but_no_few(side, channels, window, expected):
    unit = vector_unit(Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 1}))
    padded = side + window - 1
    first = sharings([1, side, side, channels], (padded, padded), window, unit, "float32")[0]
    assert first.channels == expected


def test_cores_that_multiply_by_a_lane_copy():
    unit = vector_unit(OTHERS["neon"])
    assert all(way.copied for way in sharings([1, 28, 28, 192], (30, 30), 3, unit, "float32"))
