"""Convolutions by each CPU's instructions for integers: bit for bit what NumPy makes of them, by the instruction."""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import tvm
from board_processes import needs_emulated_board
from integer_convolutions import SHAPES, cases, cases_in_other_ways
from kernel_cases import assert_computed, assert_computed_on_a_board, built, symbol

from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.kernels.integer_convolution import tasks, tilings
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import integer_vectors

# CPUs, and what the machine that runs their code has by /proc/cpuinfo.
CPUS = {"cascadelake": {"avx512_vnni", "avx512bw"}, "alderlake": {"avx_vnni"}, "haswell": {"avx2"}}
BOARDS = ["rpi5", "rpi4"]
# Of arm64: by the instruction of convolutions the target, and the core that runs it by QEMU's name.
ARM64 = {
    "sdot": (load_target("rpi5").tvm, "cortex-a76"),
    "smull": (load_target("rpi4").tvm, "cortex-a72"),
    "smmla": ({**load_target("rpi5").tvm, "mattr": ["+i8mm"]}, "max"),
}
FEW = ["first layer", "flat with a rest", "grouped", "no padding", "dense", "depthwise, narrow", "depthwise, strided"]
WIDE = ["depthwise", "depthwise 5x5"]  # Much code, which takes LLVM seconds.
OF_MATRICES = ["flat with a rest"]  # Of an odd number of pixels; the other kernels take an emulated board minutes.
OF_LITTLE = ["five to forty"]  # Two steps by a lane, which products of matrices do not shorten.
TUNED = ["first layer", "seventeen", "flat with a rest", "strided 1x1", "grouped", "dense", "depthwise, strided"]


def has(features: set[str]) -> bool:
    with open("/proc/cpuinfo") as file:
        return any(features <= set(line.split()) for line in file if line.startswith("flags"))


def assert_computed_by(instruction: str, assembly: str, names: Iterable[str]) -> None:
    """Each kernel's own code has the instruction."""
    found = set()
    for line in assembly.splitlines():
        if label := re.match(r"(?:__tvm_ffi_)?(\w+?)(?:_compute_)?:", line):
            function = label[1]
        elif instruction in line.split()[:2]:  # Before it may stand how it is encoded.
            found.add(function)
    assert {symbol(name) for name in names} <= found


@pytest.mark.parametrize(
    ("cpu", "names"),
    [
        ("cascadelake", [name for name in SHAPES if name not in WIDE]),
        ("alderlake", FEW),
        ("haswell", [*FEW, *OF_LITTLE]),
        *(pytest.param(cpu, WIDE, marks=pytest.mark.slow) for cpu in CPUS),
    ],
)
def test_convolutions_are_those_of_numpy(cpu: str, names: list[str]) -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    vectors = integer_vectors(target)
    assert vectors is not None
    found = cases(vectors, names)
    library = built(found, target)
    assert_computed_by(vectors.instruction, library.inspect_source("asm"), names)
    if not has(CPUS[cpu]):
        pytest.skip(f"this machine cannot run code for {cpu}")
    assert_computed(library, found)


def test_without_products_of_bytes_data_is_widened_once_and_not_in_each_step() -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    vectors = integer_vectors(target)
    assert vectors is not None
    names = ["flat with a rest", "no padding"]
    of_bytes = built(cases(vectors, ["depthwise, narrow"]), target).inspect_source("asm")
    widened = built(cases(vectors, names), target).inspect_source("asm")
    # What takes bytes at even and odd places apart.
    assert "vpsrlw" in of_bytes and "vpsrlw" not in widened and "vpmovzxbw" in widened


@pytest.mark.parametrize(
    ("names", "every"), [(TUNED, 13), pytest.param([*TUNED, *WIDE], 1, marks=pytest.mark.slow, id="all")]
)
@pytest.mark.parametrize("cpu", ["cascadelake", "haswell"])
def test_what_tune_chooses_among_computes_the_same(cpu: str, names: list[str], every: int) -> None:
    """Of all ways of a kernel every so manieth is run."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": 2})
    if not has(CPUS[cpu]):
        pytest.skip(f"this machine cannot run code for {cpu}")
    found = {case: found for name in names for case, found in cases_in_other_ways(target, name, every).items()}
    assert_computed(built(found, target), found)


@pytest.mark.parametrize("cpu", [*CPUS, "rpi5"])
def test_heavy_layers_have_a_task_for_each_core_at_any_image_size(cpu: str) -> None:
    """Of MobileNetV2, EfficientNet-Lite0 and ResNet-50: what a map is smaller than the image, inputs and outputs."""
    target = load_target(cpu).tvm if cpu in BOARDS else {"kind": "llvm", "mcpu": cpu}
    vectors = integer_vectors(tvm.target.Target(dict(target)))
    assert vectors is not None
    layers = [(2, 32, 16), (4, 96, 24), (8, 32, 192), (16, 256, 1024), (16, 384, 96), (32, 960, 320), (32, 512, 2048)]
    for size, batch, cores in [(224, 1, 2), (160, 1, 2), (256, 1, 4), (33, 1, 8), (96, 2, 8), (320, 3, 4), (200, 8, 2)]:
        for smaller, inputs, outputs in layers:
            extent = -(-size // smaller)
            shape = IntegerConvolution((batch, extent, extent, inputs), (1, 1), outputs)
            found = tasks(shape, vectors, next(tilings(shape, vectors, cores)))
            assert shape.products < 1 << 19 or math.prod(found) >= cores, (shape, found)


def test_a_task_copies_no_more_pixels_than_stay_near() -> None:
    vectors = integer_vectors(tvm.target.Target({"kind": "llvm", "mcpu": "haswell"}))
    assert vectors is not None
    for size, channels in [(160, 96), (640, 32), (1024, 8), (7, 4096)]:
        way = next(tilings(IntegerConvolution((1, size, size, channels), (1, 1), 24), vectors, 1))
        assert way.bands == 1 or way.bands * way.tile.rows * channels * 2 <= 256 << 10


def assert_computed_on_a_core(instruction: str, names: list[str], tuned: list[str], folder: Path) -> None:
    """As NumPy does, by the instruction; where none is of matrices, depthwise or too little, by that of one pixel."""
    description, core = ARM64[instruction]
    target = tvm.target.Target(dict(description))
    vectors = integer_vectors(target)
    assert vectors is not None and vectors.instruction == instruction
    found = cases(vectors, names)
    library = built(found, target)
    assembly = library.inspect_source("asm")
    one_by_one = [name for name in names if SHAPES[name].is_depthwise or name in OF_LITTLE]
    assert_computed_by(instruction, assembly, [name for name in names if name not in one_by_one])
    assert_computed_by(vectors.of_four_bytes.instruction, assembly, one_by_one)
    for name in tuned:
        found |= cases_in_other_ways(target, name, every=9)
    assert_computed_on_a_board(built(found, target) if tuned else library, found, target, folder, core)


@needs_emulated_board
def test_products_of_matrices_on_a_board_are_those_of_numpy(tmp_path: Path) -> None:
    assert_computed_on_a_core("smmla", OF_MATRICES, [], tmp_path)


@pytest.mark.slow  # An emulated board takes longer for a few kernels than all tests of others here.
@needs_emulated_board
@pytest.mark.parametrize(
    ("instruction", "names"), [("sdot", FEW), ("smull", FEW), ("smmla", [name for name in SHAPES if name not in WIDE])]
)
def test_convolutions_on_a_board_are_those_of_numpy(instruction: str, names: list[str], tmp_path: Path) -> None:
    assert_computed_on_a_core(instruction, names, TUNED, tmp_path)


def test_products_of_matrices_are_left_where_there_is_one_pixel_or_little_to_sum_up() -> None:
    vectors = integer_vectors(tvm.target.Target(dict(ARM64["smmla"][0])))
    assert vectors is not None
    one_pixel = IntegerConvolution((1, 1, 1, 1280), (1, 1), 1000)
    for shape in (one_pixel, IntegerConvolution((1, 9, 9, 4), (1, 1), 16), SHAPES["depthwise"]):
        assert shape.instructions(vectors).instruction == "sdot"
    for shape in (SHAPES["dense"], SHAPES["strided 1x1"], SHAPES["dilated"], SHAPES["grouped"]):
        assert shape.instructions(vectors).instruction == "smmla"
