"""How depthwise convolutions are shared out on cores with a large second-level cache, and on others as before."""

import dataclasses

import pytest
from tvm.target import Target

from tvm_passes.relax.schedules.cpu.depthwise import sharings
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

LARGE = vector_unit(Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 1}))
SMALL = dataclasses.replace(LARGE, task_bytes=128 << 10)
# Side of the input, channels, window, stride.
HALF_A_PIXEL = {"whole pixels": (112, 96, 3, 2), "few channels": (112, 32, 3, 1), "half a pixel": (28, 192, 3, 1)}
OTHERS = {"a third": (56, 144, 3, 1), "large kernel": (112, 96, 5, 2), "a map that is near": (7, 48, 3, 1)}


def ways(case, unit):
    side, channels, window, stride = case
    padded = side + 2 * (window // 2)
    return sharings([1, side // stride, side // stride, channels], (padded, padded), window, unit, "float32")


@pytest.mark.parametrize("case", HALF_A_PIXEL.values(), ids=HALF_A_PIXEL.keys())
def test_tasks_take_many_channels_where_they_are_half_of_a_pixel(case):
    side, channels, window, stride = case
    first = ways(case, LARGE)[0]
    assert 2 * first.channels >= channels
    rows = (first.rows - 1) * stride + window
    assert rows * (side + 2) * first.channels * 4 <= LARGE.task_bytes
    assert ways(case, SMALL)[0].channels == 16
    assert set(ways(case, SMALL)) <= set(ways(case, LARGE))


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS.keys())
def test_others_stay_as_on_small_caches(case):
    assert ways(case, LARGE) == ways(case, SMALL)


@pytest.mark.parametrize("mcpu", ["haswell", "znver4", "x86-64"])
def test_no_other_core_is_thought_to_have_a_large_cache(mcpu):
    assert vector_unit(Target({"kind": "llvm", "mcpu": mcpu})).task_bytes == SMALL.task_bytes
