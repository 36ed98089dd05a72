"""LayerNorm and softmax, computed row by row: what PyTorch computes, for rows that vectors divide and others."""

import re

import numpy as np
import pytest
import torch
import tvm
from operator_cases import HOST, OTHERS, function, lowered, values
from torch.nn import functional
from tvm import relax

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax.apply_schedules import SCHEDULE, ApplySchedules
from tvm_passes.relax.pipeline import loop_pipeline, plan_memory
from tvm_passes.relax.schedules import target_rules
from tvm_passes.relax.schedules.cpu.row_reductions import RowReductions
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

# Windows of Swin, ViT's tokens, what is shorter than a vector or a little longer, one token, and many whole vectors.
SHAPES = [(4, 3, 49, 49), (2, 3, 197, 197), (3, 16, 5), (1, 1, 17), (1, 1), (7, 768), (1, 7, 7, 1536), (2, 5, 50)]


def run(module: tvm.IRModule, *arrays: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The result of `main`, and the rule of each of its functions."""
    with HOST:
        scheduled = ApplySchedules(target_rules(HOST))(lowered(module, HOST))
    machine = relax.VirtualMachine(build_executable(plan_memory(scheduled, HOST), HOST), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(array) for array in arrays))
    functions = [one for one in scheduled.functions.values() if isinstance(one, tvm.tirx.PrimFunc)]
    return (result if hasattr(result, "numpy") else result[0]).numpy(), [str(one.attrs[SCHEDULE]) for one in functions]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_equals_torch(shape: tuple[int, ...]) -> None:
    (data,) = values(shape)
    found, rules = run(function(lambda _, x: relax.op.nn.softmax(x, -1), shape), data)
    np.testing.assert_allclose(found, functional.softmax(torch.from_numpy(data), -1).numpy(), rtol=1e-5, atol=1e-7)
    assert rules == ["RowReductions"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_equals_torch(shape: tuple[int, ...]) -> None:
    arrays = values(shape, shape[-1:], shape[-1:])
    ours = function(lambda _, x, g, b: relax.op.nn.layer_norm(x, g, b, [-1], 1e-5), *(one.shape for one in arrays))
    found, rules = run(ours, *arrays)
    data, gain, bias = map(torch.from_numpy, arrays)
    np.testing.assert_allclose(found, functional.layer_norm(data, shape[-1:], gain, bias).numpy(), rtol=1e-5, atol=2e-6)
    assert rules == ["RowReductions"]


def test_what_lies_around_is_computed_with_the_rows() -> None:
    arrays = values((3, 49, 49), (1, 49, 49), (3, 49, 49))
    ours = function(
        lambda emit, x, bias, y: relax.op.multiply(
            emit(relax.op.nn.softmax(emit(relax.op.add(x, bias)), -1)), emit(relax.op.exp(y))
        ),
        *(one.shape for one in arrays),
    )
    found, rules = run(ours, *arrays)
    data, bias, other = map(torch.from_numpy, arrays)
    np.testing.assert_allclose(found, (functional.softmax(data + bias, -1) * other.exp()).numpy(), rtol=1e-5, atol=1e-6)
    assert "RowReductions" in rules


@pytest.mark.parametrize("padding", [0, 2])
def test_what_follows_rows_keeps_their_values(padding: int) -> None:
    arrays = values((1, 5, 5, 24), (24,), (24,))
    ours = function(
        lambda emit, x, g, b: relax.op.nn.pad(
            emit(relax.op.nn.layer_norm(x, g, b, [-1], 1e-5)), [0, 0, 0, padding, 0, padding, 0, 0]
        ),
        *(one.shape for one in arrays),
    )
    found, rules = run(ours, *arrays)
    data, gain, bias = map(torch.from_numpy, arrays)
    expected = functional.pad(functional.layer_norm(data, (24,), gain, bias), (0, 0, 0, padding, 0, padding))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-6)
    assert "RowReductions" in rules


@pytest.mark.parametrize("shape", [(6, 8, 197), (6, 8, 32), (6, 8, 3)], ids=str)
@pytest.mark.parametrize("keepdims", [True, False])
def test_norms_of_rows_equal_torch(shape: tuple[int, ...], keepdims: bool) -> None:
    """Swin V2 divides queries and keys by theirs."""
    (data,) = values(shape)
    found, rules = run(
        function(lambda emit, x: relax.op.sum(emit(relax.op.square(emit(relax.op.abs(x)))), -1, keepdims), shape), data
    )
    expected = torch.from_numpy(data).double().square().sum(-1, keepdims).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    assert rules == ["RowReductions"]


def test_sums_of_rows_are_vectors() -> None:
    target = OTHERS["avx512"]
    module = lowered(function(lambda _, x: relax.op.sum(x, -1), (64, 192)), target)
    scheduled = RowReductions().apply(module["sum"], target, False)
    assert scheduled is not None
    built = tvm.IRModule({"main": scheduled.mod["main"].with_attr("global_symbol", "main")})
    assert "fadd <32 x float>" in tvm.tirx.build(built, target=target, pipeline=loop_pipeline()).inspect_source("ll")


@pytest.mark.parametrize(("dtype", "axis"), [("int32", -1), ("float32", 0)])
def test_other_reductions_are_left_to_other_rules(dtype: str, axis: int) -> None:
    data = np.random.default_rng(0).integers(-9, 9, (6, 197)).astype(dtype)
    found, rules = run(function(lambda _, x: relax.op.max(x, axis), data.shape, dtypes=[dtype]), data)
    np.testing.assert_array_equal(found, data.max(axis))
    assert "RowReductions" not in rules


@pytest.mark.parametrize("target", OTHERS.values(), ids=OTHERS.keys())
def test_sums_and_maxima_are_vectors_on_every_target(target: tvm.target.Target) -> None:
    module = lowered(function(lambda _, x: relax.op.nn.softmax(x, -1), (3, 197, 197)), target)
    scheduled = RowReductions().apply(module["softmax"], target, False)
    assert scheduled is not None
    lanes = vector_unit(target).lanes("float32")
    built = tvm.IRModule({"main": scheduled.mod["main"].with_attr("global_symbol", "main")})
    text = tvm.tirx.build(built, target=target, pipeline=loop_pipeline()).inspect_source("ll")
    # Two registers at a time.
    for operation in ("fadd", r"fcmp \w+"):
        assert re.search(rf"{operation} <{2 * lanes} x float>", text), operation
