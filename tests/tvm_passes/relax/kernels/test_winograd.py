"""Winograd convolutions: exact matrices, the same results as PyTorch, and weights that are transformed once a task."""

import collections
from fractions import Fraction

import numpy as np
import pytest
import torch
import tvm
from folded_networks import kernels_called
from operator_cases import HOST, OTHERS, Counting
from torch import nn
from torch.nn import functional
from tvm import relax, te
from tvm.relax.frontend.torch import from_exported_program
from tvm.s_tir import dlight

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax import pipeline
from tvm_passes.relax.channels_last import ConvertToChannelsLast
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.kernels.winograd import convolution, transforms
from tvm_passes.relax.pipeline import fold_tasks, fuse_kernels, plan_memory
from tvm_passes.relax.schedules import cpu_rules
from tvm_passes.relax.schedules.cpu import winograd
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit
from tvm_passes.relax.schedules.cpu.winograd import WinogradConvolution
from tvm_passes.relax.weight_layouts import WeightLayouts, best_tile


@pytest.mark.parametrize("tile", [2, 4])
def test_the_matrices_filter_exactly(tile: int) -> None:
    """In rational numbers: Aᵀ[(G g) ⊙ (Bᵀ d)] is the correlation of d with g."""
    matrices = transforms(tile)
    weights = [Fraction(3), Fraction(-5), Fraction(7)]
    data = [Fraction(number**2 + 1, 3) for number in range(tile + 2)]

    def times(matrix, vector):
        return [sum(one * other for one, other in zip(row, vector, strict=True)) for row in matrix]

    products = [
        one * other for one, other in zip(times(matrices.weight, weights), times(matrices.data, data), strict=True)
    ]
    expected = [sum(weights[k] * data[place + k] for k in range(3)) for place in range(tile)]
    assert times(matrices.output, products) == expected


LANES = vector_unit(HOST).lanes("float32")
# batch, height, width, inputs, outputs, m, output channels in registers, padding
SHAPES = {
    "whole tiles": (1, 8, 12, 16, 32, 4, 2 * LANES, (1, 1, 1, 1)),
    "tiles past the end": (1, 7, 9, 8, 16, 4, 16, (1, 1, 1, 1)),
    "small tiles": (1, 7, 7, 24, 16, 2, 16, (1, 1, 1, 1)),
    "no padding": (1, 9, 9, 8, 16, 4, LANES, (0, 0, 0, 0)),
    "uneven padding": (1, 9, 8, 8, 16, 2, LANES, (0, 1, 2, 1)),
    "odd channels": (1, 8, 8, 5, 16, 4, 16, (1, 1, 1, 1)),
    "batch": (3, 6, 6, 8, 16, 4, 16, (1, 1, 1, 1)),
}


def kernels(shape, epilogue):
    """The kernels of a convolution and of its weights, and inputs of them."""
    batch, height, width, inputs, outputs, tile, lanes, padding = shape
    data = te.placeholder((batch, height, width, inputs), "float32", name="data")
    weight = te.placeholder((tile + 2, tile + 2, outputs // lanes, inputs, lanes), "float32", name="transformed")
    bias = te.placeholder((outputs,), "float32", name="bias")
    result = convolution(data, weight, tile, padding)
    arguments = [data, weight]
    if epilogue:
        arguments.append(bias)
        added = te.compute(result.shape, lambda n, y, x, o: result[n, y, x, o] + bias[o], name="added")
        result = te.compute(result.shape, lambda *at: te.max(added(*at), tvm.tirx.const(0.0, "float32")), name="relu")
    rewrite = WeightRewrite((outputs, inputs, 3, 3), columns=0, run=1, lanes=lanes, tile=tile)
    return te.create_prim_func([*arguments, result]), weight_rewrite(rewrite, HOST)


def reference(shape, data, weight, bias):
    top, left, bottom, right = shape[-1]
    padded = functional.pad(torch.from_numpy(data).permute(0, 3, 1, 2), (left, right, top, bottom))
    result = functional.conv2d(padded, torch.from_numpy(weight).permute(3, 2, 0, 1))
    if bias is not None:
        result = functional.relu(result + torch.from_numpy(bias)[:, None, None])
    return result.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("epilogue", [False, True], ids=["plain", "bias and relu"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_schedule_equals_torch(name, epilogue):
    shape = SHAPES[name]
    batch, height, width, inputs, outputs, *_ = shape
    convolve, transform = kernels(shape, epilogue)
    schedules = WinogradConvolution().design_space(convolve, HOST)
    assert len(schedules) > 3
    functions = {"transform": transform}
    functions |= {f"convolve{number}": schedule.mod["main"] for number, schedule in enumerate(schedules)}
    module = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    library = build_executable(tvm.IRModule(module), HOST)
    generator = np.random.default_rng(0)
    data = generator.standard_normal((batch, height, width, inputs)).astype("float32")
    weight = generator.standard_normal((3, 3, inputs, outputs)).astype("float32")
    bias = generator.standard_normal(outputs).astype("float32") if epilogue else None
    expected = reference(shape, data, weight, bias)
    tile, lanes = shape[5:7]
    transformed_shape = (tile + 2, tile + 2, outputs // lanes, inputs, lanes)
    weights = tvm.runtime.tensor(np.full(transformed_shape, np.nan, "float32"))
    library["transform"](tvm.runtime.tensor(np.ascontiguousarray(weight.transpose(3, 2, 0, 1))), weights)
    arguments = [data] if bias is None else [data, bias]
    tensors = [tvm.runtime.tensor(array) for array in arguments]
    for symbol in list(functions)[1:]:
        found = tvm.runtime.tensor(np.full(expected.shape, np.nan, "float32"))
        library[symbol](tensors[0], weights, *tensors[1:], found)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=symbol)


def test_every_schedule_that_multiplies_by_lanes_equals_torch(monkeypatch):
    unit = VectorUnit(register_bytes=16, registers=32, cores=2, by_lane=True)
    for module in (winograd, pipeline):
        monkeypatch.setattr(module, "vector_unit", lambda _: unit)
    test_every_schedule_equals_torch("small tiles", epilogue=True)


class Network(nn.Module):
    """Convolutions of which the first, second and third pay in Winograd's form."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(32, 64, 3, padding=1)
        self.residual = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.second = nn.Conv2d(64, 32, 3)
        self.strided = nn.Conv2d(32, 32, 3, stride=2)
        self.grouped = nn.Conv2d(32, 32, 3, groups=2)
        self.dilated = nn.Conv2d(32, 32, 3, dilation=2)
        self.odd = nn.Conv2d(32, 9, 3)
        self.pointwise = nn.Conv2d(9, 8, 1)

    def forward(self, x):
        x = functional.relu(self.first(x))
        x = functional.relu6(x + self.residual(x))
        x = self.strided(self.second(x))
        return self.pointwise(self.odd(self.dilated(self.grouped(x))))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Network().eval()
    images = torch.randn(1, 32, 31, 31)
    exported = torch.export.export(model, (images,))
    module = from_exported_program(exported, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    module, parameters = relax.frontend.detach_params(module)
    with torch.inference_mode():
        return module, parameters["main"], images.numpy(), model(images).numpy()


def test_a_network_keeps_its_results(network):
    module, parameters, images, expected = network
    module = tvm.transform.Sequential(
        [ConvertToChannelsLast(), WeightLayouts(VectorUnit(register_bytes=32, registers=16, cores=2))]
    )(module)
    names = [variable.name_hint for variable, _ in module.functions_items()]
    assert sum(name.startswith("winograd_conv2d") for name in names) == 3
    assert sum(name.startswith("winograd_weight") for name in names) == 3
    fused = fuse_kernels(module, HOST)
    names = [variable.name_hint for variable, _ in fused.functions_items()]
    assert not any("winograd_weight" in name for name in names), "the transform is part of what rewrites a weight"
    counts = collections.Counter()
    with HOST:
        scheduled = dlight.ApplyDefaultSchedule(*(Counting(rule, counts) for rule in cpu_rules()))(fused)
    assert counts["WinogradConvolution"] == 3
    machine = relax.VirtualMachine(build_executable(plan_memory(scheduled, HOST), HOST), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(images), *parameters).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_weights_are_transformed_once_a_task(network):
    module, *_ = network
    folded, functions = fold_tasks(module, {"unmasked": {}}, HOST)
    main = kernels_called(folded[functions["unmasked"].main])
    assert sum(name.startswith("winograd_conv2d") for name in main) == 3
    assert not any(name.startswith("winograd_weight") for name in main)
    rewrite = kernels_called(folded[functions["unmasked"].rewrite])
    assert len(rewrite) == 3 and all(name.startswith("winograd_weight") for name in rewrite)
    # Where weights are rewritten for every inference, or a GPU runs them, the direct form stays.
    for target, fused in ((HOST, True), (tvm.target.Target("opencl"), False)):
        folded, functions = fold_tasks(module, {"unmasked": {}}, target, fused)
        assert kernels_called(folded[functions["unmasked"].main]) == []


@pytest.mark.parametrize("target", OTHERS.values(), ids=OTHERS)
def test_schedules_for_other_cpus_compile(target):
    convolve, _ = kernels((1, 14, 14, 32, 32, 4, 16, (1, 1, 1, 1)), True)
    schedule = WinogradConvolution().apply(convolve, target, False)
    assert schedule is not None
    tvm.tirx.build(schedule.mod, target=target)


def test_the_direct_form_stays_where_it_is_faster() -> None:
    assert best_tile(56, 56, 64, 64, lanes=8, weight_bytes=4) == 4
    assert best_tile(7, 7, 512, 512, lanes=8, weight_bytes=4) == 2
    assert best_tile(224, 224, 3, 64, lanes=8, weight_bytes=4) is None  # Transforms cost more than the products save.
    assert best_tile(1, 1, 512, 512, lanes=8, weight_bytes=4) is None
