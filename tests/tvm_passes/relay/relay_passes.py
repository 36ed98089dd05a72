"""The passes for Relay, in Relay's environment: `test_relay.py` runs this file with its Python."""

import os
from typing import get_args

import numpy as np
import pytest
import tvm
from tvm import relay
from tvm.contrib.graph_executor import GraphModule

from ksm_hw.artifact.parameters import FEWEST_SOFT_VALUES, MaskPart, task_parameters
from ksm_hw.masks.mask_format import GRANULARITIES, Granularity, ScaleBits, group_size, mask_shape
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.soft_mask import PackedMask, pack_mask
from ksm_hw.masks.task_pack import TaskPack
from tvm_passes.relay.fold_task_mask import FoldTaskMask, MaskLayout
from tvm_passes.relay.lift_weights import lift_weights
from tvm_passes.relay.pipeline import build_settings, fold_tasks, same

X86 = tvm.target.Target("llvm -mcpu=x86-64-v3")
CASES = [(1, False, False), (2, False, False), (1, True, False), (1, True, True)]
LAYOUT = MaskLayout((8, 4, 1, 1), 1, coded=False, soft_values=8)


def network(groups: int = 1, bias: bool = False, twice: bool = False) -> tvm.IRModule:
    """Convolution, BatchNorm, ReLU; `twice`: something else reads the convolution as well."""
    data = relay.var("input", shape=(1, 4 * groups, 8, 8))
    weight = relay.var("conv.weight", shape=(8, 4, 3, 3))
    convolution = relay.nn.conv2d(data, weight, channels=8, kernel_size=(3, 3), padding=(1, 1), groups=groups)
    parameters = [weight]
    if bias:
        parameters.append(relay.var("conv.bias", shape=(8,)))
        convolution = relay.nn.bias_add(convolution, parameters[-1])
    norm = [relay.var(f"bn.{name}", shape=(8,)) for name in ("weight", "bias", "running_mean", "running_var")]
    out = relay.nn.relu(relay.nn.batch_norm(convolution, *norm)[0])
    if twice:
        out = out + convolution
    function = relay.Function([data, *parameters, *norm], out)
    return relay.transform.InferType()(tvm.IRModule.from_expr(function))


def ops(module: tvm.IRModule) -> list[str]:
    found: list[str] = []

    def visit(expression: relay.Expr) -> None:
        if isinstance(expression, relay.Call) and isinstance(expression.op, tvm.ir.Op):
            found.append(expression.op.name)

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def run(module: tvm.IRModule, arguments: dict[str, np.ndarray]) -> list[np.ndarray]:
    with build_settings("both"):
        executor = GraphModule(relay.build(module, X86)["default"](tvm.cpu()))
    for name, array in arguments.items():
        executor.set_input(name, array)
    executor.run()
    return [executor.get_output(number).numpy() for number in range(executor.get_num_outputs())]


def random_arguments(module: tvm.IRModule) -> dict[str, np.ndarray]:
    """Of every parameter but those of masks; variances are positive."""
    generator = np.random.default_rng(0)
    return {
        variable.name_hint: generator.uniform(0.5, 1.5, tuple(map(int, variable.checked_type.shape))).astype("float32")
        for variable in module["main"].params
        if not variable.name_hint.startswith("mask/")
    }


def mask_arguments(mask: np.ndarray, layout: MaskLayout) -> dict[str, np.ndarray]:
    """What a task's pack gives for the layer `conv`."""
    ones = mask == 1
    zeros = (~ones).reshape(len(mask), -1).sum(axis=1)
    soft = np.zeros(layout.soft_values, np.float32)
    soft[: zeros.sum()] = mask[~ones]
    return {
        "mask/conv/bits": np.packbits(ones),
        "mask/conv/scale": soft,
        "mask/conv/row_start": (np.cumsum(zeros) - zeros).astype(np.int32),
        "mask/conv/scale_range": np.array([0, 1], np.float32),
    }


def mask_arrays(mask: PackedMask) -> list[np.ndarray]:
    """What the runtime makes of a task with this mask of the layer `conv`, in the order of `MaskPart`."""
    head = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
    preprocessing = Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))
    pack = TaskPack("task", ("a",), "random", "kernel", "small", "", preprocessing, {"conv": mask}, {}, *head)
    return task_parameters([f"mask/conv/{part}" for part in get_args(MaskPart)], pack, {}, 1)


@pytest.mark.parametrize(("groups", "bias", "twice"), CASES)
def test_a_mask_and_a_batch_norm_become_ops_on_weights(groups: int, bias: bool, twice: bool) -> None:
    before = network(groups, bias, twice)
    generator = np.random.default_rng(1)
    mask = np.where(generator.random((8, 4)) < 0.8, 1, generator.random((8, 4))).astype(np.float32)
    assert 0 < (mask != 1).sum() <= LAYOUT.soft_values
    folded = fold_tasks(before, {"conv": LAYOUT}, X86)
    assert folded.rewrite is not None

    arguments = random_arguments(before)
    masked = {**arguments, "conv.weight": arguments["conv.weight"] * mask[:, :, None, None]}
    (expected,) = run(before, masked)
    given = {name: value for name, value in arguments.items() if name != "input"} | mask_arguments(mask, LAYOUT)
    weights = run(folded.rewrite, {name: given[name] for name in folded.parameters})
    names = [variable.name_hint for variable in folded.main["main"].params[1:]]
    (found,) = run(folded.main, {"input": arguments["input"], **dict(zip(names, weights, strict=True))})
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Without the mask the result is another: the comparison sees it.
    (unmasked,) = run(before, arguments)
    assert np.abs(unmasked - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("scale_bits", get_args(ScaleBits))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_tasks_arrays_are_of_the_types_that_the_passes_made(granularity: Granularity, scale_bits: ScaleBits) -> None:
    soft = np.full(mask_shape((8, 4, 3, 3), granularity), 0.0 if scale_bits == 0 else 0.25, np.float32)
    soft[0] = 1
    mask = pack_mask(soft, scale_bits)
    most = max(FEWEST_SOFT_VALUES, int((soft != 1).sum()))
    before = network()
    layout = MaskLayout(mask.shape, group_size(granularity), mask.coded, most)
    folded = fold_tasks(before, {"conv": layout}, X86)
    assert folded.rewrite is not None
    names = [f"mask/conv/{part}" for part in get_args(MaskPart)]
    assert list(folded.parameters) == [variable.name_hint for variable in before["main"].params[1:]] + names
    made = [variable.checked_type for variable in folded.rewrite["main"].params][-len(names) :]
    for name, type_, array in zip(names, made, mask_arrays(mask), strict=True):
        assert array.dtype == type_.dtype
        if name.endswith("/scale"):
            # The session fills up, as for every task with fewer than the most.
            assert array.ndim == 1 and len(array) <= int(type_.shape[0]) == most
        else:
            assert array.shape == tuple(map(int, type_.shape))


def test_a_mask_may_have_the_parameter_s_own_name() -> None:
    by_name, by_layer = (fold_tasks(network(), {layer: LAYOUT}, X86) for layer in ("conv.weight", "conv"))
    assert [name for name in by_name.parameters if name.startswith("mask/")] == [
        f"mask/conv.weight/{part}" for part in get_args(MaskPart)
    ]
    assert by_name.rewrite is not None and by_layer.rewrite is not None
    assert ops(by_name.rewrite) == ops(by_layer.rewrite)


def test_main_has_no_op_on_weights() -> None:
    folded = fold_tasks(network(), {"conv": LAYOUT}, X86)
    assert folded.rewrite is not None
    variables = set(folded.main["main"].params[1:])
    touched: list[str] = []

    def visit(expression: relay.Expr) -> None:
        if isinstance(expression, relay.Call) and any(argument in variables for argument in expression.args):
            touched.append(expression.op.name)

    relay.analysis.post_order_visit(folded.main["main"], visit)
    assert set(touched) <= {"nn.contrib_conv2d_NCHWc", "add", "nn.bias_add"} and "nn.batch_norm" not in ops(folded.main)
    # The packing of weights has gone along.
    assert "layout_transform" in ops(folded.rewrite) and "cumsum" in ops(folded.rewrite)


def test_a_batch_norm_before_a_convolution_stays_an_affine() -> None:
    data = relay.var("input", shape=(1, 8, 4, 4))
    norm = [relay.var(f"bn.{name}", shape=(8,)) for name in ("weight", "bias", "running_mean", "running_var")]
    function = relay.Function([data, *norm], relay.nn.relu(relay.nn.batch_norm(data, *norm)[0]))
    before = relay.transform.InferType()(tvm.IRModule.from_expr(function))
    after = relay.transform.InferType()(FoldTaskMask({})(before))
    assert "nn.batch_norm" not in ops(after)
    arguments = random_arguments(before)
    np.testing.assert_allclose(run(after, arguments)[0], run(before, arguments)[0], rtol=1e-5)


def test_a_parameter_that_main_takes_as_it_is_goes_through_the_rewriting() -> None:
    data, bias = relay.var("input", shape=(2,)), relay.var("bias", shape=(2,))
    module = relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function([data, bias], data + bias)))
    main, rewrite = lift_weights(module)
    assert ops(main) == ["add"] and ops(rewrite) == ["copy"]
    assert not same(main, rewrite) and same(main, lift_weights(module)[0])


def test_bilinear_resizing_builds_only_without_the_elimination_of_common_subexpressions() -> None:
    data = relay.var("input", shape=(1, 3, 7, 7))
    resized = relay.image.resize2d(data, (14, 14), method="linear", coordinate_transformation_mode="half_pixel")
    module = tvm.IRModule.from_expr(relay.Function([data], resized))
    assert run(module, {"input": np.ones((1, 3, 7, 7), np.float32)})[0].shape == (1, 3, 14, 14)
    with pytest.raises(tvm.TVMError, match="LLVM"), tvm.transform.PassContext(opt_level=3):
        relay.build(module, X86)


def test_no_schedules_are_fetched() -> None:
    assert os.environ["TOPHUB_LOCATION"] == "NONE"
