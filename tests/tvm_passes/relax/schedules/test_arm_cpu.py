"""Schedules for cores that multiply by lanes compute what PyTorch computes. Here they run on this machine."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from board_processes import EMULATED_PYTHON, needs_emulated_board
from operator_cases import HOST, function, lowered, nhwc, values
from torch.nn import functional
from tvm import relax, te, tirx
from tvm.ir import TensorLoad
from tvm.target.codegen import llvm_get_cpu_features

from ksm_hw.compiler.build import build_executable
from ksm_hw.toolchains.linker import link_shared_library, linker_command
from tvm_passes.relax import pipeline
from tvm_passes.relax.apply_schedules import ApplySchedules
from tvm_passes.relax.attach_operator_costs import operator_cost
from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.loops import neon_moves
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules.base.blocks import blocks_of
from tvm_passes.relax.schedules.cpu import convolution, dense, depthwise, few_channels
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.dense import Dense
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.cpu.few_channels import FewChannels
from tvm_passes.relax.schedules.cpu.tile_model import ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

ARM = {
    name: tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": name, "num-cores": 4})
    for name in ("cortex-a55", "cortex-a72", "cortex-a76", "cortex-a78ae", "generic")
}
A76 = vector_unit(ARM["cortex-a76"])


@pytest.fixture
def by_lane(monkeypatch):
    """Has this machine scheduled for as if it multiplied by lanes."""
    for module in (convolution, dense, depthwise, few_channels, pipeline):
        monkeypatch.setattr(module, "vector_unit", lambda _: A76)


CONVOLUTIONS = {
    # batch, size, inputs, outputs, kernel, stride, padding, groups, lanes
    "tiles_run_over_rows": (1, 7, 24, 16, 3, 1, 1, 1, 8),
    "tiles_run_over_the_end": (1, 7, 8, 32, 1, 1, 0, 1, 16),
    "vectors_of_two": (1, 6, 10, 12, 3, 1, 1, 1, 12),
    "no_vectors": (1, 9, 5, 24, 3, 2, 1, 1, 12),
    "rgb": (1, 19, 3, 16, 3, 2, 1, 1, 8),
    "several_images": (3, 5, 8, 8, 3, 1, 1, 1, 8),
    "groups": (1, 7, 16, 24, 3, 1, 1, 2, 12),
    "one_pixel": (1, 1, 24, 12, 1, 1, 0, 1, 12),
}


def convolution_of(batch, size, inputs, outputs, kernel, stride, padding, groups, lanes) -> tirx.PrimFunc:
    data = te.placeholder((batch, size, size, inputs), name="data")
    weight = te.placeholder((outputs // lanes, kernel, kernel, inputs // groups, lanes), name="weight")
    bias = te.placeholder((outputs,), name="bias")
    result = packed_convolution(data, weight, (stride, stride), (padding,) * 4, (1, 1), groups)
    added = te.compute(
        result.shape, lambda n, y, x, o: te.max(result[n, y, x, o] + bias[o], tirx.const(0.0, "float32"))
    )
    return te.create_prim_func([data, weight, bias, added], index_dtype_override="int64")


def check(functions, cases):
    """Runs functions, and compares each with the result of the case after which it and its number are named."""
    module = {
        symbol: function.with_attrs({"global_symbol": symbol, "target": HOST}) for symbol, function in functions.items()
    }
    library = build_executable(tvm.IRModule(module), HOST)
    for symbol in functions:
        arrays, expected = cases[symbol.rpartition("_")[0]]
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, "float32"))
        library[symbol](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays), result)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=2e-5, err_msg=symbol)


# As above; tiles of 4 to 8 pixels divide the rows of the output.
IMAGES = {
    "rgb": (1, 31, 3, 16, 3, 2, 1, 1, 8),
    "large_window": (2, 14, 3, 16, 7, 2, 3, 1, 8),
    "grey": (1, 12, 1, 8, 3, 1, 1, 1, 4),
    "without_a_rest": (1, 12, 3, 8, 3, 2, 0, 1, 8),
    "odd_vectors": (1, 8, 5, 6, 1, 1, 0, 1, 6),
}


@pytest.mark.parametrize(("rule", "shapes"), [(Convolution(), CONVOLUTIONS), (FewChannels(), IMAGES)])
def test_every_way_of_a_convolution_equals_torch(rule, shapes, by_lane):
    functions, cases = {}, {}
    for name, shape in shapes.items():
        batch, size, inputs, outputs, kernel, stride, padding, groups, lanes = shape
        for number, candidate in enumerate(rule.design_space(convolution_of(*shape), HOST)[:2]):
            functions[f"{name}_{number}"] = candidate.mod["main"]
        data, weight, bias = values(
            (batch, inputs, size, size), (outputs, inputs // groups, kernel, kernel), (outputs,)
        )
        found = functional.conv2d(*map(torch.from_numpy, (data, weight, bias)), stride, padding, 1, groups)
        expected = np.maximum(nhwc(found.numpy()), 0)
        packed = weight.reshape(outputs // lanes, lanes, inputs // groups, kernel, kernel).transpose(0, 3, 4, 2, 1)
        cases[name] = [nhwc(data), packed, bias], expected
    assert {symbol.rpartition("_")[0] for symbol in functions} == shapes.keys()
    check(functions, cases)


def test_other_passes_read_a_row_in_parts(by_lane):
    """Vectors and the rest of a row are two blocks."""
    with HOST:
        module = ApplySchedules([FewChannels()])(tvm.IRModule({"main": convolution_of(*IMAGES["rgb"])}))
    assert operator_cost(module["main"]).flops >= 2 * 16 * 16 * 16 * 27


def test_convolutions_that_are_not_read_by_rows(by_lane):
    others = {name: CONVOLUTIONS[name] for name in ("vectors_of_two", "groups", "one_pixel")}
    others["rows_of_a_prime_length"] = (1, 11, 3, 16, 3, 1, 1, 1, 8)
    others["too_long_to_be_written_out"] = (1, 8, 13, 16, 3, 1, 1, 1, 8)
    assert not [name for name, one in others.items() if FewChannels().design_space(convolution_of(*one), HOST)]


# batch, size, channels, kernel, stride
DEPTHWISE = {
    "several_rows_at_once": (1, 8, 24, 3, 1),
    "two_rows_of_a_large_kernel": (2, 14, 8, 5, 1),
    "a_stride": (1, 9, 12, 3, 2),
    "odd_channels": (1, 7, 5, 5, 2),
    "one_vector": (1, 7, 4, 3, 1),
    "two_rows_of_few_tiles": (1, 14, 8, 3, 1),
    "long_rows": (1, 28, 16, 3, 1),
    "a_stride_and_few_tiles": (1, 28, 8, 3, 2),
    "a_large_kernel_and_a_stride": (2, 14, 8, 5, 2),
    "two_rows_of_a_large_kernel_and_a_stride": (1, 56, 4, 5, 2),
    "one_pixel": (1, 1, 8, 3, 1),
}


def depthwise_of(name):
    """A depthwise convolution with bias and activation, its inputs, and PyTorch's result."""
    batch, size, channels, kernel, stride = DEPTHWISE[name]
    data, weight, bias = values((batch, channels, size, size), (channels, 1, kernel, kernel), (channels,))
    found = functional.conv2d(*map(torch.from_numpy, (data, weight, bias)), stride, kernel // 2, 1, channels)

    def compute(emit, x, w, b):
        padding = kernel // 2
        sums = emit(relax.op.nn.conv2d(x, w, stride, padding, 1, channels, data_layout="NHWC", kernel_layout="HWIO"))
        return relax.op.clip(emit(relax.op.add(b, sums)), 0, 2)

    arrays = [nhwc(data), weight.transpose(2, 3, 1, 0), bias]
    (operator,) = lowered(function(compute, *(array.shape for array in arrays)), HOST).functions_items()[:1]
    return operator[1], arrays, nhwc(found.clamp(0, 2).numpy())


def test_every_way_of_a_depthwise_convolution_equals_torch(by_lane):
    functions, cases = {}, {}
    for name in DEPTHWISE:
        operator, *cases[name] = depthwise_of(name)
        for number, candidate in enumerate(DepthwiseConvolution().design_space(operator, HOST)[:3]):
            functions[f"{name}_{number}"] = candidate.mod["main"]
    check(functions, cases)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("core", ARM)
def test_code_for_a_core_runs_on_it(core, tmp_path):
    check_on_a_board({name: depthwise_of(name) for name in DEPTHWISE}, core, tmp_path)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 9])
def test_whatever_follows_a_depthwise_convolution_runs_on_a_core(size, tmp_path):
    cases = {name.replace(" ", "_"): case for name, case in followed_depthwise(size).items()}
    check_on_a_board(cases, "cortex-a76", tmp_path)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-a55", "cortex-a76", "cortex-a78ae"])
def test_dense_layers_run_on_a_core(core, tmp_path):
    cases = {}
    for rows, inputs, outputs in [(1, 128, 1000), (3, 64, 40), (1, 96, 4096), (2, 6, 12)]:
        arrays = [np.ascontiguousarray(one) for one in values((rows, inputs), (inputs, outputs), (outputs,))]
        shapes = (array.shape for array in arrays)
        layer = function(lambda emit, x, w, b: relax.op.add(emit(relax.op.matmul(x, w)), b), *shapes)
        (operator,) = (one for _, one in lowered(layer, HOST).functions_items() if isinstance(one, tirx.PrimFunc))
        data, weight, bias = arrays
        cases[f"dense_{rows}_{inputs}_{outputs}"] = operator, arrays, data @ weight + bias
    check_on_a_board(cases, core, tmp_path, Dense())


def check_on_a_board(cases, core, folder, rule=None):
    """Runs operators for a core, by their names, under QEMU; each comes with its inputs and its result.

    Without a rule they are depthwise convolutions.
    """
    target, kernels, arguments = ARM[core], {}, {}
    for name, (operator, inputs, expected) in cases.items():
        schedule = next(iter((rule or DepthwiseConvolution()).candidates(operator, target))).schedule
        kernels[name] = schedule.mod["main"].with_attrs({"global_symbol": name, "target": target})
        for place, array in enumerate([*inputs, np.full_like(expected, np.nan)]):
            arguments[f"{name}/0/{place}"] = np.ascontiguousarray(array)
    np.savez(folder / "arguments.npz", **arguments)
    objects = str(folder / "kernels.o")
    tirx.build(tvm.IRModule(kernels), target=by_tables(target), pipeline=loop_pipeline()).write_to_file(objects)
    link_shared_library(linker_command("aarch64"), str(folder / "kernels.so"), [objects])
    program = Path(__file__).parents[3] / "kernels_on_a_board.py"
    files = (folder / name for name in ("kernels.so", "arguments.npz", "results.npz"))
    # QEMU of Debian 12 has no A55 and no A78AE.
    environment = {**os.environ, "QEMU_CPU": core if core == "cortex-a76" else "max"}
    subprocess.run([EMULATED_PYTHON, program, *files], check=True, env=environment)
    results = np.load(folder / "results.npz")
    for name, (_, _, expected) in cases.items():
        np.testing.assert_allclose(results[f"{name}/0"], expected, rtol=1e-5, atol=2e-5, err_msg=name)


def test_cores_are_known_by_what_they_start_in_a_cycle():
    units = {name: vector_unit(target) for name, target in ARM.items()}
    assert all(unit.by_lane and unit.cores == 4 for unit in units.values())
    assert [units[name].products for name in ("cortex-a55", "cortex-a72", "cortex-a76", "cortex-a78ae")] == [1, 1, 2, 2]
    assert units["generic"] == A76


@pytest.mark.parametrize("name", ARM)
@pytest.mark.parametrize("pixels", [49, 196, 3136])
def test_tiles_leave_registers_for_inputs_and_weights(name, pixels):
    unit = vector_unit(ARM[name])
    for (tile, channels), _ in ranked_tiles(pixels, 96, 64, unit, "float32"):
        vectors = -(-channels // 4)
        assert tile == 1 or tile * vectors + tile + vectors < unit.registers


def test_where_loads_are_the_limit_tiles_are_squarer():
    """A tile of four pixels reads a vector of weights for four products, and is as fast only where loads are free."""
    few_slots, many_slots = (vector_unit(ARM[name]) for name in ("cortex-a76", "cortex-a72"))
    speeds = [dict(ranked_tiles(196, 192, 64, unit, "float32")) for unit in (few_slots, many_slots)]
    assert speeds[0][7, 12] > 1.1 * speeds[0][4, 12]
    assert speeds[1][7, 12] == pytest.approx(speeds[1][4, 12], rel=0.02)


# rows, inputs, outputs
DENSE = {"one_row": (1, 64, 40), "rows": (3, 24, 16), "no_vectors": (2, 7, 5)}


def test_every_way_of_a_dense_layer_equals_numpy(by_lane):
    functions, cases = {}, {}
    for name, (rows, inputs, outputs) in DENSE.items():
        data, weight, bias = values((rows, inputs), (inputs, outputs), (outputs,))
        shapes = (data.shape, weight.shape, bias.shape)
        module = lowered(function(lambda emit, x, w, b: relax.op.add(emit(relax.op.matmul(x, w)), b), *shapes), HOST)
        (operator,) = (one for _, one in module.functions_items() if isinstance(one, tirx.PrimFunc))
        cases[name] = [data, weight, bias], data @ weight + bias
        for number, candidate in enumerate(Dense().design_space(operator, HOST)[:3]):
            functions[f"{name}_{number}"] = candidate.mod["main"]
    check(functions, cases)


def test_sums_of_a_depthwise_convolution_begin_with_its_bias(by_lane):
    operator, *_ = depthwise_of("several_rows_at_once")
    code = next(iter(DepthwiseConvolution().candidates(operator, HOST))).schedule.mod.script()
    assert code.count("T.float32(0.0)") == 2  # Of the padding and of the clip, and none where the sums begin.


def hardswish(emit, x):
    """Six times hardswish, written in a way that is exact in PyTorch as well."""
    return relax.op.multiply(x, emit(relax.op.clip(emit(relax.op.add(x, relax.const(3, "float32"))), 0, 6)))


def add(emit, x, y):
    return emit(relax.op.add(x, y))


# What follows a depthwise convolution y: whether a bias or a residual, or both, are its other inputs, in Relax and in
# PyTorch, and whether its sums begin with the first of these.
BEHIND_DEPTHWISE = {
    "relu": ("b", lambda emit, y, b: relax.op.nn.relu(add(emit, b, y)), lambda y, b: functional.relu(y + b), True),
    "silu": ("b", lambda emit, y, b: relax.op.nn.silu(add(emit, y, b)), lambda y, b: functional.silu(y + b), True),
    "hardswish": (
        "b",
        lambda emit, y, b: hardswish(emit, add(emit, y, b)),
        lambda y, b: 6 * functional.hardswish(y + b),
        True,
    ),
    "residual": ("r", lambda emit, y, r: add(emit, y, r), lambda y, r: y + r, True),
    "bias and residual": ("br", lambda emit, y, b, r: add(emit, add(emit, y, b), r), lambda y, b, r: y + b + r, True),
    "bias twice": ("b", lambda emit, y, b: add(emit, add(emit, y, b), b), lambda y, b: y + b + b, True),
    "gate": (
        "r",
        lambda emit, y, r: relax.op.multiply(y, emit(relax.op.nn.relu(add(emit, y, r)))),
        lambda y, r: y * functional.relu(y + r),
        False,
    ),
    "two additions": (
        "br",
        lambda emit, y, b, r: relax.op.multiply(add(emit, y, b), add(emit, y, r)),
        lambda y, b, r: (y + b) * (y + r),
        False,
    ),
    "itself": ("", lambda emit, y: add(emit, y, y), lambda y: y + y, False),
}


def buffers_read(block):
    """What the body of a block reads."""
    found = set()
    tvm_ffi.structural_walk(block.body, [(TensorLoad, lambda load: found.add(load.source))])
    return found


def followed_depthwise(size):
    """Of `BEHIND_DEPTHWISE` each convolution, its inputs, and PyTorch's result."""
    data, weight, bias, residual = values((1, 24, size, size), (24, 1, 3, 3), (24,), (1, 24, size, size))
    sums = functional.conv2d(*map(torch.from_numpy, (data, weight)), None, 1, 1, 1, 24)
    inputs = {"b": (bias, torch.from_numpy(bias)[:, None, None]), "r": (nhwc(residual), torch.from_numpy(residual))}
    cases = {}
    for name, (others, compute, exact, _) in BEHIND_DEPTHWISE.items():

        def network(emit, x, w, *rest, compute=compute):
            y = emit(relax.op.nn.conv2d(x, w, 1, 1, 1, 24, data_layout="NHWC", kernel_layout="HWIO"))
            return compute(emit, y, *rest)

        arrays = [nhwc(data), weight.transpose(2, 3, 1, 0), *(inputs[one][0] for one in others)]
        (operator,) = lowered(function(network, *(array.shape for array in arrays)), HOST).functions_items()[:1]
        cases[name] = operator[1], arrays, nhwc(exact(sums, *(inputs[one][1] for one in others)).numpy())
    return cases


def test_sums_of_a_depthwise_convolution_begin_with_what_is_added_wherever_they_are_read(by_lane):
    functions, cases = {}, {}
    for name, (operator, arrays, expected) in followed_depthwise(8).items():
        *_, begun = BEHIND_DEPTHWISE[name]
        schedule = next(iter(DepthwiseConvolution().candidates(operator, HOST))).schedule
        functions[f"{name}_0"] = schedule.mod["main"]
        cases[name] = arrays, expected
        _, start, _, output = (schedule.get(block) for block in blocks_of(schedule))
        wanted = {schedule.mod["main"].params[2]} if begun else set()
        assert {read.source for read in start.reads} == buffers_read(start) == wanted, name
        assert {read.source for read in output.reads} == buffers_read(output), name
    check(functions, cases)


# What the pieces of assembly of `neon_moves` do, on any machine.
MOVES = """
define ptr @neon_written(ptr %place) {
  ret ptr %place
}
define ptr @neon_place(ptr %place, i32 %step) {
  ret ptr %place
}
define <4 x float> @neon_load(ptr %place, i32 %bytes) {
  %from = getelementptr i8, ptr %place, i32 %bytes
  %value = load <4 x float>, ptr %from, align 4
  ret <4 x float> %value
}
define <4 x float> @neon_kept(<4 x float> %value) {
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_load(ptr %place, i32 %bytes) {
  %value = call <4 x float> @neon_load(ptr %place, i32 %bytes)
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_load_far(ptr %place, i32 %bytes) {
  %value = call <4 x float> @neon_load(ptr %place, i32 %bytes)
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_product(<4 x float> %sum, <4 x float> %a, <4 x float> %b) {
  %product = fmul <4 x float> %a, %b
  %next = fadd <4 x float> %sum, %product
  ret <4 x float> %next
}
define <4 x float> @neon_ordered_minimum(<4 x float> %a, <4 x float> %b) {
  %less = fcmp olt <4 x float> %a, %b
  %value = select <4 x i1> %less, <4 x float> %a, <4 x float> %b
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_maximum(<4 x float> %a, <4 x float> %b) {
  %less = fcmp olt <4 x float> %a, %b
  %value = select <4 x i1> %less, <4 x float> %b, <4 x float> %a
  ret <4 x float> %value
}
define ptr @neon_ordered_address(ptr %place, i64 %bytes) {
  %next = getelementptr i8, ptr %place, i64 %bytes
  ret ptr %next
}
define void @neon_ordered_store(ptr %place, <4 x float> %value) {
  store <4 x float> %value, ptr %place, align 4
  ret void
}
define void @neon_ordered_store_at(ptr %place, <4 x float> %value, i32 %bytes) {
  %to = getelementptr i8, ptr %place, i32 %bytes
  store <4 x float> %value, ptr %to, align 4
  ret void
}
"""


MOVES += "".join(
    f"""
define <4 x float> @neon_ordered_product_{lane}(<4 x float> %sum, <4 x float> %a, <4 x float> %b) {{
  %factor = shufflevector <4 x float> %b, <4 x float> %b, <4 x i32> <i32 {lane}, i32 {lane}, i32 {lane}, i32 {lane}>
  %next = call <4 x float> @neon_ordered_product(<4 x float> %sum, <4 x float> %a, <4 x float> %factor)
  ret <4 x float> %next
}}
"""
    for lane in range(4)
)


@pytest.mark.parametrize("size", [8, 9])
def test_moves_of_registers_are_of_the_same_values(size, by_lane, monkeypatch):
    monkeypatch.setattr(neon_moves, "FUNCTIONS", MOVES)
    monkeypatch.setattr(neon_moves, "_has_neon", lambda _: True)
    functions, cases = {}, {}
    for name, (operator, *cases[name]) in followed_depthwise(size).items():
        for number, candidate in enumerate(DepthwiseConvolution().design_space(operator, HOST)[:2]):
            functions[f"{name}_{number}"] = candidate.mod["main"]
    check(functions, cases)


def test_dense_layers_in_order_are_those_of_numpy(by_lane, monkeypatch):
    monkeypatch.setattr(neon_moves, "FUNCTIONS", MOVES)
    monkeypatch.setattr(neon_moves, "_has_neon", lambda _: True)
    test_every_way_of_a_dense_layer_equals_numpy(by_lane)


def test_orders_of_instructions_are_those_of_tables_that_describe_the_core():
    described = {name: by_tables(target).attrs for name, target in ARM.items()}
    assert described["cortex-a76"]["mcpu"] == "neoverse-n1" and "-spe" in described["cortex-a76"]["mattr"]
    assert described["cortex-a55"]["mcpu"] == "cortex-a55" and "+slow-paired-128" in described["cortex-a55"]["mattr"]
    for name in ("cortex-a72", "cortex-a78ae", "generic"):
        assert by_tables(ARM[name]).same_as(ARM[name])
    features = [set(llvm_get_cpu_features(one)) for one in (ARM["cortex-a76"], by_tables(ARM["cortex-a76"]))]
    assert features[0] ^ features[1] == {"a76", "neoversen1", "use-postra-scheduler"}  # No instruction more or less.
