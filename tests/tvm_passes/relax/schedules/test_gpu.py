"""The GPU schedule rules compute what PyTorch computes, on an OpenCL device, and stay within a GPU's limits."""

import collections
import dataclasses
import math

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from operator_cases import (
    CONVOLUTIONS,
    OTHER_OPERATORS,
    POOLING,
    Counting,
    convolution_case,
    convolution_of,
    function,
    lowered,
    nhwc,
    values,
    vectors_of,
)
from tvm import relax
from tvm.s_tir import dlight
from tvm.target import Target

from ksm_hw.artifact.modes import FOLD_MODES
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.lower import lower_backbone
from ksm_hw.report.verify import verify
from ksm_hw.toolchains.targets import CompileTarget, load_target
from tvm_passes.relax.fold_task_mask import MaskLayout
from tvm_passes.relax.pipeline import fold_tasks, schedule_kernels
from tvm_passes.relax.schedules import gpu_rules
from tvm_passes.relax.schedules.gpu.convolution import Convolution
from tvm_passes.relax.schedules.gpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.gpu.reduction import Reduction
from tvm_passes.relax.schedules.gpu.staged_convolution import StagedConvolution
from tvm_passes.relax.schedules.gpu.staged_dense import StagedDense

# CUDA's limits on an OpenCL target: its schedules, with code that runs here.
_CUDA = {key: value for key, value in load_target("cuda-sm_80").tvm.items() if key != "arch"}
LIKE_CUDA = CompileTarget("like-cuda", "CUDA's schedules as OpenCL", "opencl", {**_CUDA, "kind": "opencl"})
TARGETS = {
    "mali": Target(dict(load_target("mali", host="host").tvm)),
    "cuda's limits": Target(dict(LIKE_CUDA.tvm)),
}
MORE_CONVOLUTIONS = {
    # As in operator_cases: batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups, rule
    "whole tiles": (1, 56, 56, 8, 64, 3, 1, (1, 1, 1, 1), 1, 1, "Convolution"),
    "tiles past the end": (1, 45, 45, 12, 40, 3, 1, (1, 1, 1, 1), 1, 1, "Convolution"),
    "batch 2": (2, 13, 11, 8, 20, 3, 2, (1, 1, 1, 1), 1, 1, "Convolution"),
    "window as high as the map": (2, 3, 9, 6, 12, 3, 1, (0, 0, 0, 0), 1, 1, "Convolution"),
    "large depthwise": (1, 56, 56, 32, 32, 3, 1, (1, 1, 1, 1), 1, 32, "DepthwiseConvolution"),
    "large groups": (1, 40, 41, 16, 32, 3, 1, (1, 1, 1, 1), 1, 2, "Convolution"),
    "one pixel": (1, 1, 1, 24, 7, 1, 1, (0, 0, 0, 0), 1, 1, "Reduction"),
}
# These go through shared memory where it is fast: of one group, 16 pixels or more, and channels in vectors.
STAGED = {
    "3x3",
    "rgb stem",
    "batch 3",
    "asymmetric padding",
    "dilation",
    "whole tiles",
    "tiles past the end",
    "batch 2",
}


pytestmark = pytest.mark.usefixtures("opencl")


@pytest.fixture
def run(tmp_path):
    """The result of `main`, as a NumPy array, with every function scheduled, and the count of each rule."""

    def run(module, target, *arrays):
        counts = collections.Counter()
        with target:
            rules = dlight.ApplyDefaultSchedule(*(Counting(rule, counts) for rule in gpu_rules()))
            module = rules(lowered(module, target))
        check_threads(module, target)
        # Kernels reach the device only by way of a library that is loaded.
        tvm.compile(module, target=target).export_library(str(tmp_path / "kernels.so"))
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "kernels.so")), tvm.opencl())
        result = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array), tvm.opencl()) for array in arrays))
        return (result if hasattr(result, "numpy") else result[0]).numpy(), counts

    return run


def check_threads(module, target):
    """Every kernel of every function is bound to blocks, and to no more threads than the target allows."""
    kernels = [kernel for kernel in module.functions.values() if isinstance(kernel, tvm.tirx.PrimFunc)]
    assert kernels
    for kernel in kernels:
        body = kernel.body.block.body
        for nest in body.seq if isinstance(body, tvm.tirx.SeqStmt) else [body]:
            bound = bound_threads(nest)
            assert "blockIdx.x" in bound, kernel.script()
            threads = math.prod(extent for name, extent in bound.items() if name.startswith("threadIdx"))
            assert 1 <= threads <= int(target.attrs["max_threads_per_block"]), kernel.script()


def bound_threads(nest):
    """The extents of the thread axes that the loops of a kernel are bound to."""
    bound = {}

    def visit(node):
        if node.thread_binding is not None:
            bound[node.thread_binding.thread_tag] = int(node.extent)

    tvm_ffi.structural_walk(nest, [(tvm.tirx.For, visit)], order="post")
    return bound


@pytest.mark.parametrize("target, epilogue", [("mali", True), ("cuda's limits", False)])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *MORE_CONVOLUTIONS])
def test_convolution_equals_torch(run, name, target, epilogue):
    case = {**CONVOLUTIONS, **MORE_CONVOLUTIONS}[name]
    module, arrays, expected = convolution_case(case, epilogue)
    found, counts = run(module, TARGETS[target], *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=4e-5)
    assert counts == {"StagedConvolution" if target != "mali" and name in STAGED else case[-1]: 1}


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "rule"),
    [
        *((batch, *shape, "Reduction") for batch in (1, 3) for shape in ((64, 1000), (7, 10), (25, 3))),
        (32, 96, 1000, "StagedDense"),
        (48, 30, 20, "Reduction"),
    ],
)
def test_dense_equals_numpy(run, batch, inputs, outputs, rule):
    arrays = values((batch, inputs), (inputs, outputs), (outputs,))
    module = function(lambda emit, x, w, b: relax.op.add(b, emit(relax.op.matmul(x, w))), *(a.shape for a in arrays))
    found, counts = run(module, TARGETS["cuda's limits"], *arrays)
    np.testing.assert_allclose(found, arrays[0] @ arrays[1] + arrays[2], rtol=1e-5, atol=2e-5)
    assert counts == {rule: 1}


@pytest.mark.parametrize("shape", [(1, 7, 9, 24), (3, 6, 6, 10)])
@pytest.mark.parametrize("name", POOLING)
def test_pooling_equals_torch(run, name, shape):
    ours, torchs = POOLING[name]
    (data,) = values(shape)
    found, counts = run(function(lambda _, x: ours(x), shape), TARGETS["mali"], data)
    expected = torchs(torch.from_numpy(data.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(found, nhwc(expected), rtol=1e-5, atol=1e-6)
    assert counts == {"Reduction": 1}


@pytest.mark.parametrize("channels", [(24, 8, 12), (24, 7, 10)])
def test_concatenation(run, channels):
    arrays = values(*((1, 30, 31, count) for count in channels), (1, 1, 1, sum(channels)))
    module = function(
        lambda emit, a, b, c, scale: relax.op.multiply(emit(relax.op.concat([a, b, c], 3)), scale),
        *(array.shape for array in arrays),
    )
    found, counts = run(module, TARGETS["mali"], *arrays)
    np.testing.assert_array_equal(found, np.concatenate(arrays[:3], 3) * arrays[3])
    assert counts == {"Concatenation": 1}


@pytest.mark.parametrize("name", OTHER_OPERATORS)
def test_every_other_operator_equals_numpy(run, name):
    ours, numpys, shapes = OTHER_OPERATORS[name]
    arrays = values(*shapes)
    found, _ = run(function(ours, *shapes), TARGETS["mali"], *arrays)
    np.testing.assert_allclose(found, numpys(*arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, length", [("int8", 16), ("float64", 2)])
def test_elementwise_operators_of_other_types_load_as_many_bytes(run, dtype, length):
    target, shape = TARGETS["mali"], (256, 256)
    arrays = [(np.arange(256 * 256).reshape(shape) % 2).astype(dtype), np.ones(shape, dtype)]
    module = function(lambda _, x, y: relax.op.add(x, y), shape, shape, dtypes=(dtype, dtype))
    with target:
        scheduled = dlight.ApplyDefaultSchedule(*gpu_rules())(lowered(module, target))
    assert vectors_of(scheduled) == {length}
    found, _ = run(module, target, *arrays)
    np.testing.assert_array_equal(found, arrays[0] + arrays[1])


def test_truth_values_are_compared_one_by_one(run):
    """TVM's code for OpenCL knows no vectors of them."""
    arrays = values((256, 256), (256, 256))
    found, _ = run(function(lambda _, x, y: relax.op.greater(x, y), (256, 256), (256, 256)), TARGETS["mali"], *arrays)
    np.testing.assert_array_equal(found, arrays[0] > arrays[1])


@pytest.mark.parametrize("groups, rule", [(1, "Convolution"), (16, "DepthwiseConvolution")])
def test_a_convolution_of_doubles_loads_as_many_bytes(run, groups, rule):
    arrays = [array.astype("float64") for array in values((1, 40, 40, 16), (3, 3, 16 // groups, 16))]
    module, expected = convolution_of(*arrays, groups, "float64")
    with TARGETS["mali"]:
        scheduled = dlight.ApplyDefaultSchedule(*gpu_rules())(lowered(module, TARGETS["mali"]))
    assert max(vectors_of(scheduled)) == 2
    found, counts = run(module, TARGETS["mali"], *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert counts == {rule: 1}


def test_products_whose_type_no_model_knows_go_to_a_rule_that_needs_none(run):
    generator = np.random.default_rng(0)
    arrays = [generator.integers(-128, 128, shape).astype("int8") for shape in ((1, 9, 9, 8), (3, 3, 8, 16))]
    module, expected = convolution_of(*arrays, 1, "int32")
    found, counts = run(module, TARGETS["mali"], *arrays)
    np.testing.assert_array_equal(found, expected)
    assert counts == {"Reduction": 1} and found.dtype == np.int32


SPACES = {
    "staged": (StagedConvolution(), (1, 9, 7, 48, 24, 3, 1, (1, 1, 1, 1), 1, 1, "")),
    "staged, few channels": (StagedConvolution(), (1, 9, 7, 3, 8, 3, 2, (1, 1, 1, 1), 1, 1, "")),
    "convolution": (Convolution(), (1, 9, 7, 8, 24, 3, 1, (1, 1, 1, 1), 1, 1, "")),
    "depthwise": (DepthwiseConvolution(), (1, 8, 6, 12, 12, 3, 1, (1, 1, 1, 1), 1, 12, "")),
    "one pixel": (Reduction(), (1, 1, 1, 60, 20, 1, 1, (0, 0, 0, 0), 1, 1, "")),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name in SPACES for target in TARGETS if target != "mali" or not name.startswith("staged")],
)
def test_every_schedule_of_a_design_space_computes_the_same(tmp_path, name, target):
    rule, case = SPACES[name]
    module, arrays, expected = convolution_case(case, epilogue=True)
    target = TARGETS[target]
    (kernel,) = (one for one in lowered(module, target).functions.values() if isinstance(one, tvm.tirx.PrimFunc))
    schedules = rule.design_space(kernel, target)
    assert 1 < len(schedules) <= 24
    applied = rule.apply(kernel, target, False)
    tvm.ir.assert_structural_equal(schedules[0].mod["main"], applied.mod["main"])
    kernels = {
        f"kernel_{index}": schedule.mod["main"].with_attr({"global_symbol": f"kernel_{index}", "target": target})
        for index, schedule in enumerate(schedules)
        if index % 12 == 0 or not name.startswith("staged")  # These are much code, and differ in numbers alone.
    }
    check_threads(tvm.IRModule(kernels), target)
    tvm.compile(tvm.IRModule(kernels), target=target).export_library(str(tmp_path / "kernels.so"))
    library = tvm.runtime.load_module(str(tmp_path / "kernels.so"))
    inputs = [tvm.runtime.tensor(np.ascontiguousarray(array), tvm.opencl()) for array in arrays]
    for symbol in kernels:
        found = tvm.runtime.tensor(np.full(expected.shape, np.nan, "float32"), tvm.opencl())
        library[symbol](*inputs, found)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=4e-5, err_msg=symbol)


@pytest.mark.parametrize(
    "rule", [Convolution(), DepthwiseConvolution(), Reduction(), StagedConvolution(), StagedDense()]
)
def test_a_rule_that_does_not_match_has_no_designs(rule):
    target = TARGETS["mali"]
    module = lowered(function(lambda _, x: relax.op.nn.relu(x), (4, 24)), target)
    (kernel,) = (one for one in module.functions.values() if isinstance(one, tvm.tirx.PrimFunc))
    assert rule.design_space(kernel, target) == [] and rule.apply(kernel, target, False) is None


@pytest.fixture(scope="module")
def folded(bundle):
    """A network with its rewrite of weights, not yet scheduled, and the same with the rewrite inside."""
    pack = bundle.packs["element-task"]
    network = lower_backbone(bundle.backbone, 5, 1, 32)
    layouts = {"element": {layer: MaskLayout(tuple(mask.shape)) for layer, mask in pack.masks.items()}}
    return [fold_tasks(network, layouts, TARGETS["mali"], fused)[0] for fused in (False, True)]


@pytest.mark.parametrize("name", ["mali", "mali-g52", "cuda-sm_80"])
def test_every_kernel_of_a_network_is_bound_within_the_limits(folded, name):
    target = Target(dict(load_target(name).tvm))
    for module in folded:
        check_threads(schedule_kernels(module, target), target)


def test_mask_decoders_of_layers_of_one_shape_are_one_function(folded):
    names = [variable.name_hint for variable in folded[0].functions if variable.name_hint.startswith("unpack_mask")]
    shapes = [name.split("_")[-1] for name in names]
    assert len(shapes) == len(set(shapes)) > 1 and all(shape.count("x") == 1 for shape in shapes)


@pytest.mark.parametrize(
    "fold", [fold if fold == "switch" else pytest.param(fold, marks=pytest.mark.slow) for fold in FOLD_MODES]
)
def test_cuda_s_schedules_equal_torch_in_every_fold_mode(bundle, photographs, tmp_path, fold):
    one = dataclasses.replace(bundle, packs={"element-task": bundle.packs["element-task"]})
    (artifact,) = compile_bundle(one, LIKE_CUDA, tmp_path / "artifact", fold=fold)
    (result,) = verify(artifact, images=photographs)
    assert result.passed, result
