"""Linear layers take weights that are packed once a task, and compute what they computed."""

import numpy as np
import pytest
import torch
import tvm
from operator_cases import HOST, OTHERS, values
from torch.nn import functional
from tvm import relax

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax.apply_schedules import SCHEDULE
from tvm_passes.relax.pipeline import fold_tasks, plan_memory, schedule_kernels


def linear(rows: int, inputs: int, outputs: int, weight_is_data: bool = False) -> tvm.IRModule:
    """A linear layer with bias and ReLU: PyTorch's weight [O, I], or of the input's own first rows."""
    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType((rows, inputs), "float32"))
    weight = relax.Var("layer.weight", relax.TensorType((outputs, inputs), "float32"))
    bias = relax.Var("layer.bias", relax.TensorType((outputs,), "float32"))
    with builder.function("main", [data, weight, bias], attrs={"num_input": 1}):
        with builder.dataflow():
            source = relax.op.strided_slice(data, [0], [0], [outputs]) if weight_is_data else weight
            turned = builder.emit(relax.op.permute_dims(builder.emit(source), [1, 0]))
            added = builder.emit(relax.op.add(builder.emit(relax.op.matmul(data, turned)), bias))
            result = builder.emit_output(relax.op.nn.relu(added))
        builder.emit_func_output(result)
    return builder.get()


def rules(module: tvm.IRModule) -> set[str]:
    """The rules that scheduled a module's functions."""
    functions = [one for one in module.functions.values() if isinstance(one, tvm.tirx.PrimFunc)]
    return {str(one.attrs.get(SCHEDULE, "")).split(":")[0] for one in functions}


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(8, 24, 32), (49, 96, 64), (197, 33, 48), (196, 384, 1536), (3136, 96, 384)],
    ids=str,
)
def test_a_linear_layer_equals_numpy(rows: int, inputs: int, outputs: int) -> None:
    module, functions = fold_tasks(linear(rows, inputs, outputs), {"plain": {}}, HOST)
    scheduled = schedule_kernels(module, HOST)
    assert "PackedProduct" in rules(scheduled) and "MatrixProduct" not in rules(scheduled)
    machine = relax.VirtualMachine(build_executable(plan_memory(scheduled, HOST), HOST), tvm.cpu())
    data, *arrays = values((rows, inputs), (outputs, inputs), (outputs,))
    plain = functions["plain"]
    assert plain.rewrite is not None
    weights = machine[plain.rewrite]([tvm.runtime.tensor(array) for array in arrays])
    found = machine[plain.main](tvm.runtime.tensor(data), *weights)
    expected = np.maximum(data @ arrays[0].T + arrays[1], 0)
    np.testing.assert_allclose((found if hasattr(found, "numpy") else found[0]).numpy(), expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("rows", "outputs", "weight_is_data"),
    [(1, 32, False), (7, 32, False), (49, 5, False), (49, 32, True)],
    ids=["one token", "few rows", "outputs that no vectors divide", "a product of data with data"],
)
def test_other_products_stay(rows: int, outputs: int, weight_is_data: bool) -> None:
    module, _ = fold_tasks(linear(rows, 24, outputs, weight_is_data), {"plain": {}}, HOST)
    assert "PackedProduct" not in rules(schedule_kernels(module, HOST))


@pytest.mark.parametrize("target", OTHERS.values(), ids=OTHERS.keys())
def test_every_target_keeps_the_sums_of_a_tile_in_registers(target: tvm.target.Target) -> None:
    module, _ = fold_tasks(linear(49, 96, 64), {"plain": {}}, target)
    scheduled = schedule_kernels(module, target)
    assert "PackedProduct" in rules(scheduled)
    assert plan_memory(scheduled, target) is not None


def test_an_activation_across_a_change_of_shape_is_fused_behind_its_product() -> None:
    builder = relax.BlockBuilder()
    types = [((2, 49, 24), "x"), ((32, 24), "layer.weight"), ((32,), "layer.bias")]
    data, weight, bias = (relax.Var(name, relax.TensorType(shape, "float32")) for shape, name in types)
    with builder.function("main", [data, weight, bias], attrs={"num_input": 1}):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(data, (98, 24)))
            product = builder.emit(relax.op.matmul(flat, builder.emit(relax.op.permute_dims(weight, [1, 0]))))
            added = builder.emit(relax.op.reshape(builder.emit(relax.op.add(product, bias)), (2, 49, 32)))
            activated = builder.emit(relax.op.nn.gelu(added))
            result = builder.emit_output(relax.op.reshape(activated, (98, 32)))
        builder.emit_func_output(result)
    module, functions = fold_tasks(builder.get(), {"plain": {}}, HOST)
    scheduled = schedule_kernels(module, HOST)
    (kernel,) = (name for name in scheduled.get_global_vars() if name.name_hint.startswith("fused_matmul"))
    assert "gelu" in kernel.name_hint
    machine = relax.VirtualMachine(build_executable(plan_memory(scheduled, HOST), HOST), tvm.cpu())
    arrays = values(*(shape for shape, _ in types))
    rewrite = functions["plain"].rewrite
    assert rewrite is not None
    weights = machine[rewrite]([tvm.runtime.tensor(array) for array in arrays[1:]])
    found = machine[functions["plain"].main](tvm.runtime.tensor(arrays[0]), *weights)
    expected = functional.gelu(functional.linear(*map(torch.from_numpy, arrays))).reshape(98, 32).numpy()
    np.testing.assert_allclose((found if hasattr(found, "numpy") else found[0]).numpy(), expected, rtol=1e-5, atol=1e-5)
