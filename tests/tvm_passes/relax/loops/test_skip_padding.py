"""Maxima without their padding; sums are tested where schedules inline theirs (`test_depthwise_in_place.py`)."""

import pytest
import tvm
from operator_cases import OTHERS, POOLING, function, lowered
from tvm import te, tirx
from tvm.s_tir import Schedule, dlight
from tvm.target import Target

from tvm_passes.relax.loops.skip_padding import SkipPadding
from tvm_passes.relax.schedules import cpu_rules

LEAST = float(tirx.min_value("float32").value)
AVX2 = Target({"kind": "llvm", "mcpu": "haswell"})


@pytest.mark.parametrize("target", [OTHERS["avx512"], AVX2], ids=["avx512", "avx2"])
def test_pooling_copies_nothing_and_leaves_padding_out(target):
    compute, _ = POOLING["max"]
    module = lowered(function(lambda _emit, x: compute(x), (1, 9, 9, 32)), target)
    with target:
        scheduled = dlight.ApplyDefaultSchedule(*cpu_rules())(module)
    text = SkipPadding()(scheduled).script()
    assert "pad_temp" not in text and "if_then_else" in scheduled.script() and "if_then_else" not in text


@pytest.mark.parametrize(("padding", "stays"), [(LEAST, False), (0.0, True)])
def test_only_padding_that_changes_no_maximum_is_left_out(padding, stays):
    data = te.placeholder((8, 16), name="data")
    inside = te.compute((10, 16), lambda y, x: tirx.if_then_else(y < 8, data[y, x], tirx.const(padding, "float32")))
    y = te.reduce_axis((0, 10), name="y")
    schedule = Schedule(te.create_prim_func([data, te.compute((16,), lambda x: te.max(inside[y, x], axis=y))]))
    producer, _ = schedule.get_child_blocks(schedule.get_sblock("root"))
    schedule.compute_inline(producer)
    assert ("if_then_else" in SkipPadding()(tvm.IRModule({"main": schedule.mod["main"]})).script()) == stays
