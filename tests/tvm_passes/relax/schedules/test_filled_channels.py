"""Convolutions whose output channels are filled up: where that is done, and what they then are."""

import numpy as np
import pytest
import tvm
from operator_cases import CONVOLUTIONS, HOST, OTHERS, convolution_case, vectors_of
from tvm import te, tirx
from tvm.s_tir import dlight

from tvm_passes.relax.attach_operator_costs import operator_cost
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules.base.blocks import match_reduction
from tvm_passes.relax.schedules.cpu import cpu_rules
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.tile_model import filled_channels
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit
from tvm_passes.relax.weight_layouts import WeightLayouts

PIXELS, INPUTS = 14 * 14, 116


def pointwise(target, outputs):
    """The kernel of a 1×1 convolution in the form that a target gets."""
    case = (1, 14, 14, INPUTS, outputs, 1, 1, (0, 0, 0, 0), 1, 1, "")
    module = WeightLayouts(vector_unit(target))(convolution_case(case, epilogue=False)[0])
    (kernel,) = (module[name] for name in module.get_global_vars() if name.name_hint == "conv2d")
    return kernel


def packed_as(shape, weight):
    """HWIO weights in blocks of output channels, the last filled up with zeros."""
    blocks, *kernel, lanes = shape
    filled = np.pad(weight, [(0, 0)] * 3 + [(0, blocks * lanes - weight.shape[-1])])
    return filled.reshape(*kernel, blocks, lanes).transpose(3, 0, 1, 2, 4)


def scheduled(target, outputs):
    """That kernel with the target's schedule, in a module."""
    with target:
        return dlight.ApplyDefaultSchedule(*cpu_rules())(tvm.IRModule({"conv2d": pointwise(target, outputs)}))


@pytest.mark.parametrize(
    ("channels", "filled"),
    # 58 and 116 have narrow vectors alone, 208 = 13 · 16 and 440 = 11 · 40 bad tiles; 64 and 24 have good ones.
    [(58, 64), (116, 128), (208, 224), (440, 448), (64, None), (24, None), (200, None), (10, None)],
)
def test_channels_that_only_bad_tiles_divide_are_filled_up(channels, filled):
    assert filled_channels(PIXELS, channels, INPUTS, vector_unit(OTHERS["avx512"]), "float32") == filled


@pytest.mark.parametrize(
    ("pixels", "channels", "inputs", "filled"),
    # SqueezeNet's head, RegNetY's 7×7 maps: 2 and 3 MB of weights; 232 = 29 · 8 has narrow vectors alone.
    [(169, 1000, 512, None), (49, 888, 888, None), (49, 440, 440, 448), (100, 232, 1392, 240)],
)
def test_channels_with_more_weights_than_a_cache_holds_are_filled_up_where_vectors_are_narrow(
    pixels, channels, inputs, filled
):
    assert filled_channels(pixels, channels, inputs, vector_unit(OTHERS["avx512"]), "float32") == filled


def test_one_pixel_waits_for_its_weights_in_any_tiles():
    assert filled_channels(1, 116, INPUTS, vector_unit(OTHERS["avx512"]), "float32") is None


def test_cores_that_multiply_by_lanes_keep_their_channels():
    assert filled_channels(PIXELS, 58, INPUTS, vector_unit(OTHERS["neon"]), "float32") is None


@pytest.mark.parametrize("outputs", [116, 128])
def test_what_is_filled_up_is_not_counted(outputs):
    kernel = scheduled(OTHERS["avx512"], outputs)["conv2d"]  # Costs are attached behind schedules.
    assert operator_cost(kernel).flops == 2 * PIXELS * INPUTS * outputs


def test_a_result_without_axes_has_no_channels():
    values = te.placeholder((4,), name="values")
    axis = te.reduce_axis((0, 4))
    kernel = te.create_prim_func([values, te.compute((), lambda: te.sum(values[axis], axis=axis))])
    assert operator_cost(kernel).flops == 4
    assert match_reduction(kernel, HOST, "R") is not None


@pytest.mark.parametrize(("target", "lanes"), [("avx512", 16), ("sse", 4)])
def test_vectors_are_whole(target, lanes):
    assert vectors_of(scheduled(OTHERS[target], 58)) == {lanes}


def test_every_way_computes_the_same():
    """All ways begin with the operator that was found once, and none shares channels out among cores."""
    module, (data, weight, *_), expected = convolution_case(CONVOLUTIONS["filled up, 3x3 with a stride"], False)
    module = WeightLayouts(vector_unit(HOST))(module)
    (kernel,) = (module[name] for name in module.get_global_vars() if name.name_hint == "conv2d")
    candidates = list(Convolution().candidates(kernel, HOST))
    assert len(candidates) > 1 and all(candidate.way.pixels_first for candidate in candidates)
    ways = {f"way{index}": candidate.schedule.mod["main"] for index, candidate in enumerate(candidates[:3])}
    packed = packed_as([int(extent) for extent in kernel.params[1].shape], weight)
    named = {name: function.with_attr("global_symbol", name) for name, function in ways.items()}
    library = tirx.build(tvm.IRModule(named), target=HOST, pipeline=loop_pipeline())
    for name in named:
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
        library[name](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (data, packed)), result)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=2e-5)
