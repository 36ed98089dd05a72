"""The CPU schedule rules and the channels-last layout compute what PyTorch computes, at awkward shapes as well."""

import collections
import functools

import numpy as np
import pytest
import torch
import tvm
from operator_cases import (
    CONVOLUTIONS,
    HOST,
    OTHER_OPERATORS,
    OTHERS,
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
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program
from tvm.s_tir import dlight

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax import weight_layouts
from tvm_passes.relax.channels_last import ConvertToChannelsLast
from tvm_passes.relax.fold_padding import FoldPadding
from tvm_passes.relax.pipeline import plan_memory
from tvm_passes.relax.schedules import cpu_rules
from tvm_passes.relax.schedules.cpu.tile_model import ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit


def schedule(module, target=HOST):
    """The module with its kernels scheduled, and how many functions each rule scheduled."""
    counts = collections.Counter()
    with target:
        rules = dlight.ApplyDefaultSchedule(*(Counting(rule, counts) for rule in cpu_rules()))
        return rules(lowered(module, target)), counts


def run(module, *arrays):
    """The result of `main`, as a NumPy array, with every function scheduled, and the count of each rule."""
    module, counts = schedule(module)
    machine = relax.VirtualMachine(build_executable(plan_memory(module, HOST), HOST), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays))
    return (result if hasattr(result, "numpy") else result[0]).numpy(), counts


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("weights", ["HWIO", "packed"])
@pytest.mark.parametrize("epilogue", ["none", "bias, residual and relu"])
def test_convolution_equals_torch(case, epilogue, weights, monkeypatch):
    _, _, _, inputs, *_, groups, rule = case
    module, arrays, expected = convolution_case(case, epilogue != "none")
    if weights == "packed":
        # Winograd's form is test_winograd's.
        monkeypatch.setattr(weight_layouts, "best_tile", lambda *_: None)
        module = weight_layouts.WeightLayouts(vector_unit(HOST))(module)
    found, counts = run(module, *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    assert counts[rule] == 1 and set(counts) <= {rule, "Fallback"}
    assert (counts["Fallback"] > 0) == (weights == "packed" and inputs // groups > 1)


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 1000), (7, 10), (25, 3)])
def test_dense_equals_torch(batch, inputs, outputs):
    arrays = values((batch, inputs), (inputs, outputs), (outputs,))
    found, counts = run(
        function(lambda emit, x, w, b: relax.op.add(b, emit(relax.op.matmul(x, w))), *(a.shape for a in arrays)),
        *arrays,
    )
    np.testing.assert_allclose(found, arrays[0] @ arrays[1] + arrays[2], rtol=1e-5, atol=1e-5)
    assert counts == {"Dense" if batch < 8 else "MatrixProduct": 1}


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "rule"),
    [
        (8, 4096, 2048, "MatrixProduct"),
        (7, 4096, 2048, "Dense"),
        (15, 4096, 2049, "Dense"),
        (16, 4096, 2049, "MatrixProduct"),
    ],
)
def test_weights_beyond_caches_take_more_rows(rows, inputs, outputs, rule):
    _, counts = schedule(function(lambda _, x, w: relax.op.matmul(x, w), (rows, inputs), (inputs, outputs)))
    assert counts == {rule: 1}


@pytest.mark.parametrize(
    ("data", "weight"),
    [
        ((49, 40), (40, 64)),
        ((3, 19, 24), (3, 24, 19)),
        ((2, 3, 49, 49), (2, 3, 49, 32)),
        ((9, 5), (5, 1)),
        ((3, 49, 24), (24, 32)),
        ((1, 2, 14, 24), (24, 19)),
    ],
    ids=["one", "filled up", "batch of two axes", "one output", "one weight for a batch", "one weight, filled up"],
)
def test_products_of_many_rows_equal_numpy(data, weight):
    arrays = values(data, weight, (weight[-1],))
    found, counts = run(
        function(
            lambda emit, x, w, b: relax.op.nn.relu(emit(relax.op.add(emit(relax.op.matmul(x, w)), b))),
            *(a.shape for a in arrays),
        ),
        *arrays,
    )
    np.testing.assert_allclose(found, np.maximum(arrays[0] @ arrays[1] + arrays[2], 0), rtol=1e-5, atol=2e-5)
    assert counts == {"MatrixProduct": 1}


@pytest.mark.parametrize("target", OTHERS.values(), ids=OTHERS.keys())
def test_products_of_many_rows_are_computed_in_vectors(target):
    module, _ = schedule(function(lambda _, x, w: relax.op.matmul(x, w), (3, 19, 24), (3, 24, 19)), target)
    assert vector_unit(target).lanes("float32") in vectors_of(module)


@pytest.mark.parametrize("shape", [(1, 7, 9, 24), (3, 6, 6, 10)])
@pytest.mark.parametrize("name", POOLING)
def test_pooling_equals_torch(name, shape):
    ours, torchs = POOLING[name]
    (data,) = values(shape)
    found, counts = run(function(lambda _, x: ours(x), shape), data)
    expected = torchs(torch.from_numpy(data.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(found, nhwc(expected), rtol=1e-5, atol=1e-6)
    # The window of an adaptive pooling that does not divide the map has no constant size.
    assert counts.total() == 1 and (name == "adaptive" or counts == {"PixelReduction": 1})


def test_concatenation_is_cut_where_inputs_end():
    arrays = values((1, 6, 5, 24), (1, 6, 5, 7), (1, 6, 5, 10), (1, 1, 1, 41))
    found, counts = run(
        function(
            lambda emit, a, b, c, scale: relax.op.multiply(emit(relax.op.concat([a, b, c], 3)), scale),
            *(array.shape for array in arrays),
        ),
        *arrays,
    )
    np.testing.assert_array_equal(found, np.concatenate(arrays[:3], 3) * arrays[3])
    assert counts == {"Concatenation": 1}


@pytest.mark.parametrize("name", OTHER_OPERATORS)
def test_every_other_operator_equals_numpy(name):
    ours, numpys, shapes = OTHER_OPERATORS[name]
    arrays = values(*shapes)
    found, _ = run(function(ours, *shapes), *arrays)
    np.testing.assert_allclose(found, numpys(*arrays), rtol=1e-5, atol=1e-5)


def test_unknown_shapes_still_compile():
    rows = tvm.tirx.Var("rows", "int64")
    (data,) = values((5, 24))
    found, counts = run(function(lambda _, x: relax.op.nn.relu(x), (rows, 24)), data)
    np.testing.assert_array_equal(found, np.maximum(data, 0))
    assert not counts


@pytest.mark.parametrize(
    ("name", "lanes", "registers", "cores"), [("avx512", 16, 32, 4), ("sse", 4, 16, 1), ("neon", 4, 32, 4)]
)
def test_vector_unit_and_code_for_other_targets(name, lanes, registers, cores):
    target = OTHERS[name]
    unit = vector_unit(target)
    assert (unit.register_bytes, unit.registers, unit.cores) == (4 * lanes, registers, cores)
    module = function(
        lambda _, x, w: relax.op.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"),
        (1, 7, 7, 16),
        (3, 3, 16, 48),
    )
    module, counts = schedule(module, target)
    assert counts == {"Convolution": 1}
    build_executable(plan_memory(module, target), target)


@pytest.mark.parametrize("lanes, registers", [(8, 16), (16, 32), (4, 32)])
@pytest.mark.parametrize("channels", [3, 10, 24, 58, 64, 1000])
@pytest.mark.parametrize("pixels", [1, 49, 196, 3136])
def test_tiles_fit_the_registers(pixels, channels, lanes, registers):
    unit = VectorUnit(4 * lanes, registers, 2)
    for (tile_pixels, tile_channels), _ in ranked_tiles(pixels, channels, 64, unit, "float32"):
        assert channels % tile_channels == 0 and tile_pixels <= pixels
        assert tile_pixels * tile_channels <= lanes * registers


@pytest.mark.parametrize(("mcpu", "products"), [("znver4", 1), ("znver5", 2), ("skylake-avx512", 2), ("znver3", 2)])
def test_a_cpu_that_halves_its_vectors_is_known(mcpu, products):
    assert vector_unit(tvm.target.Target({"kind": "llvm", "mcpu": mcpu})).products == products


@pytest.mark.parametrize(
    ("mcpu", "convolution", "tile"),
    [
        # Pixels, output channels, products of a sum, and bytes between pixels that are read. Each tile was the quickest
        # of all or within 3 % of it: docs/peers/avx512.md.
        ("cascadelake", (196, 256, 1024), (6, 64)),
        ("cascadelake", (3136, 64, 256), (6, 64)),
        ("cascadelake", (196, 80, 480), (5, 80)),
        ("cascadelake", (196, 96, 576), (9, 48)),
        # Few tiles use the weights, which come from far: they must use them well.
        ("cascadelake", (49, 160, 960), (14, 32)),
        ("cascadelake", (49, 512, 4608), (14, 32)),
        # 14 pixels that share two sets of the first-level cache push one another out of it.
        ("cascadelake", (49, 512, 2048, 8192), (5, 64)),
        ("cascadelake", (49, 2048, 1024, 8192), (5, 64)),
        ("cascadelake", (49, 768, 3072, 12288), (7, 48)),
        ("cascadelake", (49, 2048, 512, 2048), (14, 32)),
        # One product a cycle: tiles that fit the map.
        ("znver4", (49, 512, 4608), (7, 32)),
    ],
)
def test_the_tile_that_was_measured_to_be_quick_is_the_first(mcpu, convolution, tile):
    pixels, channels, depth, *apart = convolution
    unit = vector_unit(tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}))
    assert ranked_tiles(pixels, channels, depth, unit, "float32", *apart)[0][0] == tile


def test_sizes_come_from_the_type_of_values():
    unit = VectorUnit(register_bytes=32, registers=16, cores=2)
    assert {dtype: unit.lanes(dtype) for dtype in ("float64", "float32", "float16", "int8", "bool")} == {
        "float64": 4, "float32": 8, "float16": 16, "int8": 32, "bool": 32,
    }  # fmt: skip
    for (_, channels), _ in ranked_tiles(49, 64, 576, unit, "float64"):
        assert channels <= 16
    for dtype in ("int4", "float32x4"):
        with pytest.raises(ValueError, match=f"whole bytes, such as float32 and int8, not {dtype}"):
            unit.lanes(dtype)


AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "znver3", "num-cores": 2})


@pytest.mark.parametrize("groups, rule, lanes", [(1, "Convolution", {4, 8}), (32, "DepthwiseConvolution", {4})])
def test_a_convolution_of_doubles_has_vectors_of_half_as_many(groups, rule, lanes):
    arrays = [array.astype("float64") for array in values((1, 9, 9, 32), (3, 3, 32 // groups, 32))]
    module, expected = convolution_of(*arrays, groups, "float64")
    # Padding of its own takes two registers at once.
    assert vectors_of(schedule(module, AVX2)[0]) == lanes
    found, counts = run(module, *arrays)
    assert counts == {rule: 1}
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_products_whose_type_no_model_knows_go_to_the_fallback():
    """8 bits are summed up in 32: no tile of float32 fits them, and the result is exact all the same."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(-128, 128, shape).astype("int8") for shape in ((1, 7, 7, 8), (3, 3, 8, 16))]
    module, expected = convolution_of(*arrays, 1, "int32")
    found, counts = run(module, *arrays)
    np.testing.assert_array_equal(found, expected)
    assert counts == {"Fallback": 1} and found.dtype == np.int32
    halves = [array.astype("float16") for array in values((3, 64), (64, 10))]
    module = function(lambda _, x, w: relax.op.matmul(x, w), (3, 64), (64, 10), dtypes=("float16", "float16"))
    found, counts = run(module, *halves)
    np.testing.assert_allclose(found, halves[0].astype("float32") @ halves[1].astype("float32"), rtol=2e-2, atol=5e-2)
    assert counts == {"Fallback": 1}


@pytest.mark.parametrize("dtype, lanes", [("int8", 64), ("float16", 32), ("float64", 8)])
def test_elementwise_operators_of_every_type_take_whole_vectors(dtype, lanes):
    arrays = [np.arange(128 * 256).reshape(128, 256).astype(dtype), np.ones(256, dtype)]
    module = function(lambda _, x, y: relax.op.add(x, y), (128, 256), (256,), dtypes=(dtype, dtype))
    assert vectors_of(schedule(module, AVX2)[0]) == {lanes}
    found, _ = run(module, *arrays)
    np.testing.assert_array_equal(found, arrays[0] + arrays[1])


def test_a_vector_is_as_long_as_its_widest_values_allow():
    module = function(lambda _, x: relax.op.astype(x, "float32"), (128, 256), dtypes=("int8",))
    assert vectors_of(schedule(module, AVX2)[0]) == {16}


class Affine(nn.Module):
    """A BatchNorm that no convolution can absorb, as DenseNet has: a scale and a shift for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x):
        return x * self.scale + self.shift


class DenseBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(Affine(8 + 4 * index), nn.ReLU(), nn.Conv2d(8 + 4 * index, 4, 3, padding=1))
            for index in range(3)
        )
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10))

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1))


class ChannelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1), nn.ReLU())

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        joined = torch.cat((left, self.branch(right)), 1)
        n, c, h, w = joined.shape
        shuffled = joined.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return shuffled.mean((2, 3))


class SqueezeAndExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )

    def forward(self, x):
        x = self.stem(x)
        return x + x * self.gate(x)


NETWORKS = {
    # network, transposes of activations in `main`: the input's, and where a map is flattened or returned, one more
    "plain": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
        ),
        1,
    ),
    "flattened map": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(200, 16),
            nn.ReLU(), nn.Linear(16, 10),
        ),
        2,
    ),
    "explicit padding": (
        lambda: nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(),
            nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(8, 8, 5, groups=8, stride=2), nn.Flatten(2), nn.Linear(4, 2),
        ),
        2,
    ),
    "padding that stays": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConstantPad2d((0, 1, 2, 0), 0.5), nn.Conv2d(8, 8, 3)),
        2,
    ),
    "dense block": (DenseBlock, 1),
    "channel shuffle": (ChannelShuffle, 1),
    "squeeze and excite": (SqueezeAndExcite, 2),
}  # fmt: skip


def imported(network, data):
    exported = torch.export.export(network.eval(), (data,))
    module = from_exported_program(exported, keep_params_as_input=True)
    module, parameters = relax.frontend.detach_params(module)
    return module, [parameter.numpy() for parameter in parameters["main"]]


def operators(module, name):
    """The calls of a Relax operator in `main`."""
    found = []

    def visit(node):
        if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get(name):
            found.append(node)

    relax.analysis.post_order_visit(module["main"], visit)
    return found


@functools.cache
def converted(name):
    """A network, its input, its parameters, and its module in channels-last form with the weights' part lifted out."""
    torch.manual_seed(0)
    network, data = NETWORKS[name][0](), torch.randn(1, 3, 10, 10)
    module, parameters = imported(network, data)
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        FoldPadding(),
        ConvertToChannelsLast(),
        relax.transform.LiftTransformParams(),
    ]
    return network, data, parameters, tvm.transform.Sequential(passes)(module)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_network_equals_torch(name):
    network, data, parameters, module = converted(name)
    module, _ = schedule(module)
    machine = relax.VirtualMachine(build_executable(plan_memory(module, HOST), HOST), tvm.cpu())
    weights = machine["main_transform_params"]([tvm.runtime.tensor(parameter) for parameter in parameters])
    (found,) = machine["main"](tvm.runtime.tensor(data.numpy()), *weights)
    with torch.no_grad():
        expected = network(data).numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_are_transposed_only_at_the_ends(name):
    *_, module = converted(name)
    transposes = operators(module, "relax.permute_dims")
    # A channel shuffle is a transpose of the network itself.
    layout = [call for call in transposes if len(call.ty.shape) == 4]
    assert len(layout) == NETWORKS[name][1]
    for convolution in operators(module, "relax.nn.conv2d"):
        assert (convolution.attrs.data_layout, convolution.attrs.kernel_layout) == ("NHWC", "HWIO")


def test_dense_block_concatenates_two_tensors_at_a_time():
    *_, module = converted("dense block")
    assert [len(call.args[0].fields) for call in operators(module, "relax.concat")] == [2, 2, 2]


def test_zero_padding_joins_its_convolution_and_other_padding_stays():
    *_, folded = converted("explicit padding")
    assert not operators(folded, "relax.nn.pad")
    assert [[int(p) for p in call.attrs.padding] for call in operators(folded, "relax.nn.conv2d")] == [
        [0, 0, 1, 1],
        [1, 1, 2, 2],
    ]
    *_, unfolded = converted("padding that stays")
    assert len(operators(unfolded, "relax.nn.pad")) == 1


def test_padding_of_channels_stays():
    def compute(emit, x, w):
        padded = emit(relax.op.nn.pad(x, [0, 0, 0, 1, 1, 1, 1, 1], "constant", 0.0))
        return relax.op.nn.conv2d(padded, w)

    module = FoldPadding()(function(compute, (1, 2, 6, 6), (4, 3, 3, 3)))
    assert len(operators(module, "relax.nn.pad")) == 1
