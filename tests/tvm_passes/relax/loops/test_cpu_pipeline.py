"""What the CPU pipeline adds to TVM's: accumulators in registers, and weights that are asked for ahead."""

import re

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te
from tvm.s_tir import Schedule, dlight
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.loops.prefetch import InsertPrefetch, ask_ahead
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules import cpu_rules

HOST = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 2})
AVX2 = Target({"kind": "llvm", "mcpu": "haswell", "num-cores": 2})
AVX512 = Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 2})
NEON = Target({"kind": "llvm", "mcpu": "cortex-a72", "mtriple": "aarch64-linux-gnu", "num-cores": 4})


def convolution(side: int, inputs: int, blocks: int, lanes: int, target: Target) -> tvm.IRModule:
    """A scheduled 1×1 convolution [1, side, side, inputs] with weights [blocks, 1, 1, inputs, lanes]."""
    data = te.placeholder((1, side, side, inputs), name="data")
    weight = te.placeholder((blocks, 1, 1, inputs, lanes), name="weight")
    result = packed_convolution(data, weight, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    module = tvm.IRModule({"main": te.create_prim_func([data, weight, result])})
    with target:
        return dlight.ApplyDefaultSchedule(*cpu_rules())(module)


def asked(module: tvm.IRModule) -> list[str]:
    """What is asked for, as text, such as `weight[task + 1, 0, 0, i, 0]`."""
    found: list[str] = []

    def visit(call: tvm.ir.Call) -> None:
        if call.op.same_as(tvm.ir.Op.get("tirx.call_llvm_intrin")):
            found.append(str(call.args[1].args[0]))

    tvm_ffi.structural_walk(InsertPrefetch()(module)["main"].body, (tvm.ir.Call, visit))
    return found


@pytest.mark.parametrize(
    ("lanes", "target", "starts"),
    [(8, NEON, ["0"]), (16, AVX2, ["0"]), (24, AVX2, ["0", "8"]), (32, AVX512, ["0", "16"])],
    ids=["8", "16", "24", "32"],
)
def test_each_step_asks_for_every_line_of_the_next_block(lanes: int, target: Target, starts: list[str]) -> None:
    found = asked(convolution(7, 256, 1152 // lanes, lanes, target))
    assert [re.fullmatch(r"weight\[\w+ \+ 1, \w+, \w+, [\w *+]+, (\d+)\]", one).group(1) for one in found] == starts


@pytest.mark.parametrize(
    ("side", "inputs", "blocks"),
    [(7, 64, 16), (56, 256, 64), (7, 2048, 32)],
    ids=["weights that stay near", "a large map", "blocks too large"],
)
def test_weights_are_not_asked_for_where_it_costs_more(side: int, inputs: int, blocks: int) -> None:
    assert asked(convolution(side, inputs, blocks, 16, AVX2)) == []


def test_along_the_last_axis_and_from_where_the_inner_loops_begin() -> None:
    vector, weight = te.placeholder((8,), name="vector"), te.placeholder((8, 64), name="weight")
    i = te.reduce_axis((0, 8), name="i")
    product = te.compute((64,), lambda o: te.sum(vector[i] * weight[i, o], axis=i), name="product")
    schedule = Schedule(te.create_prim_func([vector, weight, product]))
    outputs, depth = schedule.get_loops(schedule.get_sblock("product"))
    outer, inner = schedule.split(outputs, [None, 16])
    schedule.reorder(outer, depth, inner)
    schedule.decompose_reduction(schedule.get_sblock("product"), depth)
    ask_ahead(schedule, depth, axis=1, distance=16)
    (found,) = asked(schedule.mod)
    assert re.fullmatch(r"weight\[\w+, \w+ \* 16 \+ 16\]", found)


@pytest.mark.parametrize("target", [AVX2, NEON], ids=["avx2", "neon"])
def test_accumulators_are_registers(target: Target) -> None:
    """TVM's own pipeline takes them from its workspaces; an assembler's text shows it."""
    module = convolution(7, 256, 72, 16, target)
    text = {
        pipeline: tvm.tirx.build(module, target=target, pipeline=pipeline).inspect_source("ll")
        for pipeline in ("default", loop_pipeline())
    }
    assert "AllocWorkspace" in text["default"]
    assert "AllocWorkspace" not in text[loop_pipeline()]
    assert "llvm.prefetch" in text[loop_pipeline()]
    assert not re.search(r"alloca .*(float|x i8\])", text[loop_pipeline()])


def test_behind_the_last_block_nothing_is_harmed() -> None:
    generator = np.random.default_rng(0)
    data, weight = (
        generator.standard_normal(shape).astype("float32") for shape in ((1, 7, 7, 256), (72, 1, 1, 256, 16))
    )
    result = tvm.runtime.tensor(np.zeros((1, 7, 7, 1152), "float32"))
    main = tvm.tirx.build(convolution(7, 256, 72, 16, HOST), target=HOST, pipeline=loop_pipeline())["main"]
    main(tvm.runtime.tensor(data), tvm.runtime.tensor(weight), result)
    expected = np.einsum("nyxi,bklio->nyxbo", data, weight).reshape(1, 7, 7, 1152)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)
