"""exp, sigmoid, tanh and erf are arithmetic on vectors, as exact as the pass says, over all that float32 holds."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm
from operator_cases import HOST, OTHERS, function
from tvm import relax, te, tirx
from tvm.target import Target

from tvm_passes.relax.pipeline import loop_pipeline, plan_memory, schedule_kernels

# What is computed, by what it is compared with, and the relative error that the pass states.
FUNCTIONS = {
    "exp": (tirx.exp, torch.exp, 1.2e-7),
    "sigmoid": (tirx.sigmoid, torch.sigmoid, 2.5e-7),
    "tanh": (tirx.tanh, torch.tanh, 4e-7),
    "erf": (tirx.erf, torch.erf, 4e-7),
}
TARGETS = {"host": HOST, **OTHERS}
OF_THE_LIBRARY = {"expf", "tanhf", "erff", "exp", "tanh", "erf"}


def called(code: str) -> set[str]:
    """The names that assembler of x86-64 or arm64 calls, but those that it calls through a pointer."""
    return set(re.findall(r"^\s*(?:callq?|bl|jmp|b)\s+([A-Za-z_]\w*)", code, re.MULTILINE))


def built(
    compute: Callable[[tirx.Expr], tirx.Expr], values: int, target: Target, dtype: str = "float32"
) -> tvm.runtime.Module:
    """`main(data, result)`, which computes a function of so many values in vectors."""
    data = te.placeholder((values,), dtype, name="data")
    result = te.compute((values,), lambda i: compute(data[i]), name="result")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([data, result]))
    (loop,) = schedule.get_loops(schedule.get_sblock("result"))
    schedule.vectorize(schedule.split(loop, [None, 16])[1])
    return tirx.build(schedule.mod, target, loop_pipeline())


def computed(
    compute: Callable[[tirx.Expr], tirx.Expr], data: np.ndarray, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """Values, with zeros behind them that fill the last vector, and what a function of them is."""
    data = np.pad(data, (0, -len(data) % 16))
    result = tvm.runtime.empty(data.shape, "float32")
    built(compute, len(data), target)["main"](tvm.runtime.tensor(data), result)
    return data, result.numpy()


# A fifth of a million is spared to every exponent; the stride is odd, so that all patterns of the last bits occur.
EVERY = np.arange(0, 1 << 32, 4093, dtype=np.uint64).astype(np.uint32).view(np.float32)
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 88.72, 88.73, -86.98, -87.4, 10, 4.3], np.float32)
# Of every sign, with all patterns of the lowest bits: those that a shift brings to the exponent's place.
NANS = np.array([[0x7F800000], [0x7FC00000], [0xFF800000], [0xFFC00000], [0x7FFFFE00]], np.uint32) | np.arange(1, 512)
AROUND = np.linspace(-105, 105, 300_000).astype(np.float32)


# With multiply-adds that round once, and without.
@pytest.mark.parametrize("target", [HOST, OTHERS["sse"]], ids=["host", "sse"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_exact_as_stated(name: str, target: Target) -> None:
    compute, exact, error = FUNCTIONS[name]
    data = np.concatenate([EVERY, SPECIAL, AROUND, NANS.astype(np.uint32).view(np.float32).ravel()])
    data, found = computed(compute, data, target)
    wanted = exact(torch.from_numpy(data).double()).numpy()
    with np.errstate(over="ignore"):
        rounded = wanted.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(data))
    np.testing.assert_array_equal(found[np.isinf(rounded)], rounded[np.isinf(rounded)])
    # exp and sigmoid are 0 where it differs from the result by less than two of the smallest normal numbers.
    normal = np.isfinite(rounded) & (np.abs(wanted) > 2.0**-125.4)
    flushed = name in ("exp", "sigmoid")
    small = np.isfinite(rounded) & ~normal
    assert np.abs(found[normal].astype(np.float64) / wanted[normal] - 1).max() < error
    np.testing.assert_allclose(found[small], wanted[small], rtol=error, atol=1.8e-38 if flushed else 1.5e-45)


@pytest.mark.parametrize("target", [HOST, OTHERS["sse"]], ids=["host", "sse"])
@pytest.mark.parametrize(("name", "limit"), [("tanh", 10.0), ("erf", 4.3)])
def test_tanh_and_erf_end_at_one(name: str, limit: float, target: Target) -> None:
    steps = np.unique(np.concatenate([EVERY[~np.isnan(EVERY)], AROUND]))
    data, found = computed(FUNCTIONS[name][0], steps, target)
    assert np.abs(found).max() == 1
    beyond = np.abs(data) >= np.float32(limit)
    np.testing.assert_array_equal(found[beyond], np.sign(data[beyond]))
    rising = found[: len(steps)]
    assert np.all(np.diff(rising) >= -4e-7 * np.abs(rising[1:]))


def gelu(x: tirx.Expr) -> tirx.Expr:
    half, root = tirx.const(0.5, "float32"), tirx.const(0.5**0.5, "float32")
    return x * (half + tirx.erf(x * root) * half)


def gelu_by_tanh(x: tirx.Expr) -> tirx.Expr:
    half, one, cubic, root = (tirx.const(value, "float32") for value in (0.5, 1, 0.044715, (2 / np.pi) ** 0.5))
    return half * x * (one + tirx.tanh(root * (x + cubic * x * x * x)))


@pytest.mark.parametrize("target", [HOST, OTHERS["sse"]], ids=["host", "sse"])
@pytest.mark.parametrize(("compute", "approximate"), [(gelu, "none"), (gelu_by_tanh, "tanh")], ids=["erf", "tanh"])
def test_the_tails_of_gelu_are_those_of_pytorch(
    compute: Callable[[tirx.Expr], tirx.Expr], approximate: str, target: Target
) -> None:
    data = np.concatenate([AROUND, [-1e3, -1e6, -1e12, 1e12, -np.inf, np.inf, np.nan]]).astype(np.float32)
    data, found = computed(compute, data, target)
    wanted = torch.nn.functional.gelu(torch.from_numpy(data).double(), approximate=approximate).numpy()
    assert np.all(found[np.isfinite(data) & (data < -6.1)] == 0)
    np.testing.assert_allclose(found, wanted, rtol=4e-7, atol=2e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nothing_is_called_for_each_value(name: str, target: Target) -> None:
    code = built(FUNCTIONS[name][0], 1024, target).inspect_source("asm")
    assert not called(code) & OF_THE_LIBRARY
    # Vectors of floats are multiplied; no single ones are.
    multiplied = re.findall(r"(?:mulps|fm?add\d+ps|fmla\s+v\d+\.4s|fmul\s+v\d+\.4s)", code)
    assert len(multiplied) > 5 and "mulss" not in code


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_types_are_left_to_the_library(name: str) -> None:
    compute, exact, _ = FUNCTIONS[name]
    result, data = tvm.runtime.empty((48,), "float64"), np.linspace(-30, 30, 48)
    built(compute, 48, HOST, "float64")["main"](tvm.runtime.tensor(data), result)
    np.testing.assert_allclose(result.numpy(), exact(torch.from_numpy(data)).numpy(), rtol=1e-14)


def activated(emit: Callable[[relax.Expr], relax.Expr], x: relax.Expr, weight: relax.Expr) -> relax.Expr:
    """Convolutions with activations behind them, a squeeze-and-excitation, and a softmax."""
    op = relax.op

    def convolution(data: relax.Expr) -> relax.Expr:
        return emit(op.nn.conv2d(data, weight, data_layout="NHWC", kernel_layout="HWIO"))

    result = emit(op.nn.silu(convolution(x)))
    result = emit(op.multiply(result, emit(op.sigmoid(emit(op.mean(result, [1, 2], keepdims=True))))))
    for activation in (op.nn.gelu, op.tanh, op.nn.softmax):
        result = emit(activation(convolution(result)))
    return result


def compiled(network: tvm.IRModule, target: Target) -> tvm.runtime.Module:
    """The loops of a network, without the rest of it."""
    planned = plan_memory(schedule_kernels(network, target), target)
    loops = {name: one for name, one in planned.functions.items() if isinstance(one, tirx.PrimFunc)}
    return tirx.build(tvm.IRModule(loops), target, loop_pipeline())


@pytest.mark.parametrize("target", [HOST, OTHERS["neon"]], ids=["host", "neon"])
def test_a_network_calls_no_function_of_the_c_library(target: Target) -> None:
    code = compiled(function(activated, (1, 6, 6, 24), (1, 1, 24, 24)), target).inspect_source("asm")
    assert called(code) and not called(code) & OF_THE_LIBRARY


def test_gpus_compute_erf_value_by_value() -> None:
    target = Target({"kind": "opencl", "device": "mali", "host": HOST})
    (kernels,) = compiled(function(lambda _, x: relax.op.nn.gelu(x), (1, 8, 8, 64)), target).imports
    lines = [line for line in kernels.inspect_source().splitlines() if "erf" in line]
    assert lines and all("erf(" in line and "vload" not in line for line in lines)
