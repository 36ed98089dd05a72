"""The pass that schedules every loop nest: what it says of its choices, and that nothing but its words is new."""

import logging
import re

import tvm
from operator_cases import HOST, function
from tvm import relax
from tvm.s_tir import dlight

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax.apply_schedules import SCHEDULE, ApplySchedules
from tvm_passes.relax.pipeline import fuse_kernels, plan_memory
from tvm_passes.relax.schedules import cpu_rules


def network(batch=1):
    """A convolution, a concatenation and a dense layer; of an unknown batch, functions that no rule knows."""

    def compute(emit, x, w, dense):
        convolved = emit(relax.op.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"))
        joined = emit(relax.op.concat([convolved, x], 3))
        return relax.op.matmul(emit(relax.op.mean(joined, [1, 2])), dense)

    return fuse_kernels(function(compute, (batch, 7, 7, 8), (3, 3, 8, 16), (24, 10)), HOST)


def kernels(module):
    return {name.name_hint: one for name, one in module.functions_items() if isinstance(one, tvm.tirx.PrimFunc)}


def scheduled(module, rules):
    with HOST:
        return kernels(ApplySchedules(rules)(module))


def test_every_function_says_its_rule_and_its_way_and_so_does_the_log(caplog):
    with caplog.at_level(logging.INFO, "tvm_passes.relax.apply_schedules"):
        found = scheduled(network(), cpu_rules())
    choices = {name: one.attrs[SCHEDULE] for name, one in found.items()}
    assert re.fullmatch(
        r"Convolution: Tiling\(pixels=\d+, channels=\d+, cuts=\d+, copied=\w+, pixels_first=False\)", choices["conv2d"]
    )
    assert re.fullmatch(r"Dense: Band\(outputs=10, inputs=8\)", choices["matmul"])
    assert choices["concatenate"] == "Concatenation" and choices["mean"] == "PixelReduction"
    assert sorted(record.message for record in caplog.records) == sorted(
        f"{name}: {choice}" for name, choice in choices.items()
    )


def test_the_schedules_are_those_of_dlight_s_pass_and_so_is_the_code():
    module, rules = network(), cpu_rules()
    with HOST:
        theirs = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule(network().functions))
        ours = ApplySchedules(rules)(module)
    plain = {name: one.without_attr(SCHEDULE) for name, one in kernels(ours).items()}
    assert plain and all(SCHEDULE in one.attrs for one in kernels(ours).values())
    for name, one in kernels(theirs).items():
        tvm.ir.assert_structural_equal(plain[name], one)
    # LLVM's names of memory that does not alias are addresses.
    planned = [plan_memory(one, HOST) for one in (ours, theirs)]
    codes = [build_executable(one, HOST).mod.imports[0].inspect_source("ll") for one in planned]
    assert re.sub(r"0x[0-9a-f]+", "", codes[0]) == re.sub(r"0x[0-9a-f]+", "", codes[1])


def test_what_is_scheduled_stays_and_what_no_rule_knows_is_told(caplog):
    rows = tvm.tirx.Var("rows", "int64")
    with caplog.at_level(logging.INFO, "tvm_passes.relax.apply_schedules"):
        found = scheduled(network(rows), cpu_rules())
    assert found and not any(SCHEDULE in one.attrs or "tirx.is_scheduled" in one.attrs for one in found.values())
    assert {record.message for record in caplog.records} == {f"{name}: no rule matches" for name in found}
    once = scheduled(network(), cpu_rules())
    twice = scheduled(tvm.IRModule(once), [])
    for name, one in twice.items():
        assert one.same_as(once[name])
