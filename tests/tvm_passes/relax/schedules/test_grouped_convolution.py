"""Convolutions of groups that are read as they lie, of several groups a vector or several vectors a group."""

import numpy as np
import pytest
import tvm
from operator_cases import HOST, OTHERS, convolution_case, lowered, vectors_of
from tvm.target import Target
from tvm.tirx import PrimFunc

from tvm_passes.relax.loops.skip_padding import SkipPadding
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules.cpu.grouped_convolution import GroupedConvolution, lanes_of_groups
from tvm_passes.relax.schedules.cpu.tile_model import TASKS
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit
from tvm_passes.relax.weight_layouts import WeightLayouts

AVX512 = OTHERS["avx512"]
# Batch, height, width, channels in and out, window, stride, padding (top, left, bottom, right), dilation, groups.
CASES = {
    "as many groups as two vectors hold": (1, 8, 8, 32, 32, 3, 1, (1, 1, 1, 1), 1, 4, ""),
    "an odd number of groups": (1, 7, 7, 24, 24, 3, 1, (1, 1, 1, 1), 1, 3, ""),
    "stride 2, uneven padding": (1, 8, 16, 40, 40, 3, 2, (0, 1, 1, 0), 1, 5, ""),
    "dilated, batch 2": (2, 9, 7, 16, 16, 3, 1, (2, 2, 2, 2), 2, 2, ""),
    "four groups of four, room for another": (1, 4, 8, 28, 28, 3, 1, (1, 1, 1, 1), 1, 7, ""),
    "no padding": (1, 6, 10, 24, 24, 3, 1, (0, 0, 0, 0), 1, 3, ""),
    "groups of a vector": (1, 7, 14, 48, 48, 3, 1, (1, 1, 1, 1), 1, 3, ""),
    "groups of a vector and a half, stride 2": (1, 8, 14, 48, 48, 3, 2, (1, 1, 1, 1), 1, 2, ""),
    "groups of two vectors": (2, 4, 7, 64, 64, 3, 1, (1, 1, 1, 1), 1, 2, ""),
}


def kernel_and_arrays(case):
    """The kernel of a case with bias, residual and relu as AVX-512 has it, its arrays, weights packed, and torch's
    result."""
    module, (data, weight, *others), expected = convolution_case(case, True)
    module = lowered(WeightLayouts(vector_unit(AVX512))(module), AVX512)
    (kernel,) = (
        function
        for name, function in module.functions.items()
        if isinstance(function, PrimFunc) and "conv2d" in name.name_hint
    )
    blocks, *window, lanes = (int(extent) for extent in kernel.params[1].ty.shape)
    filled = np.pad(weight, [(0, 0)] * 3 + [(0, blocks * lanes - weight.shape[-1])])
    packed = filled.reshape(*window, blocks, lanes).transpose(3, 0, 1, 2, 4)
    return kernel, [data, packed, *others], expected


def scheduled(case, target):
    """The modules of a case's ways."""
    kernel, _, _ = kernel_and_arrays(case)
    ways = GroupedConvolution().candidates(kernel, target)
    modules = [candidate.schedule.mod for candidate in ways]
    return [tvm.IRModule({"main": one["main"].with_attr("global_symbol", "main")}) for one in modules]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_way_computes_what_torch_does(case):
    _, arrays, expected = kernel_and_arrays(case)
    modules = scheduled(case, HOST)
    assert modules
    for module in modules:
        code = tvm.tirx.build(module, target=HOST, pipeline=loop_pipeline())
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, np.float32))
        code["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays), result)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "window", "stride", "columns", "lanes"),
    [
        (8, 48, 6, 3, 1, 28, 16),
        (8, 104, 13, 3, 2, 28, 16),
        (4, 128, 32, 3, 1, 56, 16),
        (16, 64, 4, 3, 1, 28, None),  # One group fills a vector.
        (24, 96, 4, 3, 1, 28, None),
        (2, 64, 32, 3, 1, 56, None),
        (8, 96, 6, 3, 1, 28, None),  # 16 outputs of 8 inputs.
        (8, 8, 1, 3, 1, 28, None),
        (8, 48, 6, 3, 1, 13, None),  # No tile divides a row.
        (8, 48, 6, 1, 1, 28, None),  # Neighbours share no input.
        (8, 48, 6, 2, 2, 28, None),
    ],
)
def test_groups_that_a_vector_holds(inputs, outputs, groups, window, stride, columns, lanes):
    shape = (inputs, outputs, groups, window, stride, columns)
    assert lanes_of_groups(*shape, vector_unit(AVX512), "float32") == lanes


@pytest.mark.parametrize("mcpu", ["haswell", "znver4", "x86-64"])
def test_cpus_of_narrower_units_keep_groups_apart(mcpu):
    unit = vector_unit(Target({"kind": "llvm", "mcpu": mcpu}))
    assert lanes_of_groups(8, 48, 6, 3, 1, 28, unit, "float32") is None


@pytest.mark.parametrize(("channels", "vectors"), [(96, {16}), (104, {8, 16})])
def test_vectors_are_whole_and_sums_stay_in_registers(channels, vectors):
    """Where the last vector is filled up, its groups are stored one by one."""
    module, *_ = scheduled((1, 14, 14, channels, channels, 3, 1, (1, 1, 1, 1), 1, channels // 8, ""), AVX512)
    assert vectors_of(module) == vectors
    text = tvm.tirx.build(module, target=AVX512, pipeline=loop_pipeline()).inspect_source("ll")
    assert "alloca [" not in text and "alloca <" not in text


@pytest.mark.parametrize(
    ("channels", "groups", "columns", "found"),
    [
        (64, 4, 28, True),
        (72, 3, 14, True),  # Groups of 24.
        (64, 2, 7, True),
        (38, 2, 14, False),  # Groups of 19 channels have blocks of one.
        (128, 2, 14, False),  # Sums of 64 channels leave no registers for neighbours.
        (64, 4, 13, False),  # No tile divides a row.
        (32, 1, 14, False),
    ],
)
def test_groups_of_whole_vectors_are_read_as_they_lie_too(channels, groups, columns, found):
    case = (1, 8, columns, channels, channels, 3, 1, (1, 1, 1, 1), 1, groups, "")
    assert (GroupedConvolution().match(kernel_and_arrays(case)[0], AVX512) is not None) == found


def test_groups_of_several_vectors_leave_registers_for_their_weights():
    kernel, _, _ = kernel_and_arrays((1, 8, 28, 48, 48, 3, 1, (1, 1, 1, 1), 1, 2, ""))
    tiles = {candidate.way.pixels for candidate in GroupedConvolution().candidates(kernel, AVX512)}
    assert tiles == {7, 4}  # Beside 28 sums there are none for six vectors of weights.


def test_nothing_is_copied_and_what_is_multiplied_by_padding_is_left_out():
    module, *_ = scheduled(CASES["as many groups as two vectors hold"], AVX512)
    text = SkipPadding()(module).script()
    assert "if_then_else" in module.script() and "if_then_else" not in text


@pytest.mark.parametrize("side", [56, 14, 7])
def test_every_core_has_tasks_enough(side):
    target = Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 2})
    kernel, _, _ = kernel_and_arrays((1, side, side, 64, 64, 3, 1, (1, 1, 1, 1), 1, 8, ""))
    first = next(GroupedConvolution().candidates(kernel, target))
    assert side // first.way.rows >= min(side, TASKS * 2)


def test_groups_are_brought_together_by_shuffles_alone():
    case = (1, 28, 28, 64, 64, 3, 1, (1, 1, 1, 1), 1, 8, "")
    module, *_ = scheduled(case, AVX512)
    text = tvm.tirx.build(module, target=AVX512, pipeline=loop_pipeline()).inspect_source("s")
    assert "vpermt2ps" in text and "vinsertps" not in text and "vgather" not in text
