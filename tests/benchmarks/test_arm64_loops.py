"""The loops of operators for arm64, by the tables of llvm-mca: they stay near the core's peak. Nothing is timed."""

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import tvm
from operator_cases import function, lowered
from parallel_loops import Run, loop_runner, parts_of
from tvm import relax, te, tirx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from arm64_loops.cores import BOARDS, Core
from arm64_loops.llvm_mca import CostedLoop, cost_loops
from arm64_loops.operators import OperatorCost, cost_operator, match_loops, read_operators
from arm64_loops.peer_wheels import float_loop, library_loops, multiplies_by_lane
from arm64_loops.scheduled_loops import CompileWatch, ScheduledLoop
from arm64_loops.uneven_cores import loop_milliseconds, regions_of

from ksm_hw.artifact.manifest import OperatorEntry
from ksm_hw.toolchains.disassembly import Instruction
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.apply_schedules import ApplySchedules
from tvm_passes.relax.kernels.integer_convolution import integer_convolution, tilings
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.kernels.winograd import convolution as winograd_convolution
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.loops.share_loops import UNITS
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules import cpu_rules
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.cpu.tile_model import ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

RPI5 = tvm.target.Target(dict(load_target("rpi5").tvm))
A76 = BOARDS["rpi5"][0]
# Of products of matrices. Neoverse-N2 is the server's form of the Cortex-A710.
N2 = tvm.target.Target({**load_target("rpi5").tvm, "mcpu": "neoverse-n2"})
A710 = Core("Cortex-A710", "neoverse-n2", 2, 2.5, 2)
OTHERS = [board for board in BOARDS if board not in ("rpi5", "rk3588")]

# Pixels in a row and a column, channels before and behind, kernel, stride: of MobileNetV2 and ResNet-18.
CONVOLUTIONS = {
    "pointwise": (14, 96, 576, 1, 1),
    "pointwise_on_an_odd_map": (7, 160, 960, 1, 1),
    "strided": (28, 64, 128, 3, 2),
    "first_layer": (224, 3, 32, 3, 2),
    "first_layer_with_a_large_window": (224, 3, 64, 7, 2),
}
# Pixels in a row and a column, channels, kernel, stride: of MobileNetV2 and EfficientNet-Lite0.
DEPTHWISE = {
    "depthwise": (28, 192, 3, 1),
    "depthwise_on_a_narrow_map": (14, 384, 3, 1),
    "depthwise_strided": (28, 192, 3, 2),
    "large_depthwise": (14, 672, 5, 1),
    "large_depthwise_strided": (14, 672, 5, 2),
}
# By board and core, the least shares of the peak of `DEPTHWISE`. By the table the A76's two units for vectors do 12
# things for each value of a 3×3 window: nine products, two bounds, and half of a store. So 75 % is all that there is.
LEAST_DEPTHWISE = {
    ("rpi4", 0): (0.81, 0.81, 0.81, 0.92, 0.92),
    ("rpi5", 0): (0.74, 0.73, 0.65, 0.89, 0.73),
    ("jetson-orin", 0): (0.74, 0.74, 0.74, 0.89, 0.82),
    ("rk3588", 0): (0.74, 0.70, 0.65, 0.89, 0.73),
    ("rk3588", 1): (0.91, 0.81, 0.80, 1.15, 0.86),
}


# Pixels in a row and a column, channels before and behind: 1×1 convolutions of bytes, of MobileNetV2 and ResNet-50.
# With fewer channels before them a step is all there is of a sum, and making it bytes again takes longer.
INTEGER_CONVOLUTIONS = {
    "narrow": (56, 64, 256),
    "few_outputs": (56, 144, 24),
    "pointwise": (14, 96, 576),
    "pointwise_on_an_odd_map": (7, 960, 160),
    "wide": (7, 2048, 512),
}


def convolution(size: int, inputs: int, outputs: int, kernel: int, stride: int) -> tirx.PrimFunc:
    """With packed weights, as `WeightLayouts` has it."""
    pixels = (size // stride) ** 2
    (_, lanes), _ = ranked_tiles(pixels, outputs, kernel**2 * inputs, vector_unit(RPI5), "float32")[0]
    data = te.placeholder((1, size, size, inputs), name="data")
    weight = te.placeholder((outputs // lanes, kernel, kernel, inputs, lanes), name="weight")
    around = (kernel // 2,) * 4
    result = packed_convolution(data, weight, (stride, stride), around, (1, 1), 1)
    return te.create_prim_func([data, weight, result], index_dtype_override="int64")


def winograd(size: int, channels: int) -> tirx.PrimFunc:
    """F(4×4, 3×3) of a square map, with padding and as many channels behind as before."""
    data = te.placeholder((1, size, size, channels), name="data")
    weight = te.placeholder((6, 6, channels // 16, channels, 16), name="weight")
    result = winograd_convolution(data, weight, 4, (1, 1, 1, 1))
    return te.create_prim_func([data, weight, result], index_dtype_override="int64")


def depthwise(board: tvm.target.Target, size: int, channels: int, kernel: int, stride: int) -> tirx.PrimFunc:
    """With a bias and an activation."""

    def compute(emit, x, w, b):
        sums = emit(relax.op.nn.conv2d(x, w, stride, kernel // 2, 1, channels, "NHWC", "HWIO"))
        return relax.op.clip(emit(relax.op.add(sums, b)), 0, 6)

    shapes = (1, size, size, channels), (kernel, kernel, 1, channels), (channels,)
    return kernel_of(function(compute, *shapes), board)


def dense(outputs: int) -> tirx.PrimFunc:
    """A layer with few inputs."""
    shapes = (1, 128), (128, outputs), (outputs,)
    return kernel_of(function(lambda emit, x, w, b: relax.op.add(emit(relax.op.matmul(x, w)), b), *shapes), RPI5)


def kernel_of(module: tvm.IRModule, target: tvm.target.Target) -> tirx.PrimFunc:
    (kernel,) = (one for _, one in lowered(module, target).functions_items() if isinstance(one, tirx.PrimFunc))
    return kernel


def built(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target, library: Path) -> CompileWatch:
    """Writes scheduled functions as an object file; returns what the compiler did."""
    watch = CompileWatch()
    with target, tvm.transform.PassContext(instruments=[watch]):
        module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in functions.items()})
        tirx.build(module, target=by_tables(target), pipeline=loop_pipeline()).write_to_file(str(library))
    return watch


def costs(library: Path, watch: CompileWatch, names: Iterable[str], core: Core) -> dict[str, OperatorCost]:
    entries = {name: OperatorEntry(None, 0, (), "") for name in names}
    return {one.symbol: cost_operator(one, core) for one in read_operators(library, entries, watch)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompileWatch]:
    """`CONVOLUTIONS` as an object file for a Raspberry Pi 5, and what the compiler did."""
    functions = {name: convolution(*shape) for name, shape in CONVOLUTIONS.items()}
    library = tmp_path_factory.mktemp("arm64") / "loops.o"
    return library, built(scheduled(functions), RPI5, library)


def scheduled(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target = RPI5) -> dict[str, tirx.PrimFunc]:
    with target:
        module = ApplySchedules(cpu_rules())(tvm.IRModule(functions))
    return {str(name.name_hint): one for name, one in module.functions_items()}


@pytest.fixture(scope="module")
def shares(compiled: tuple[Path, CompileWatch]) -> dict[str, float | None]:
    """Of the peak of its core, for each of `CONVOLUTIONS`."""
    found = costs(*compiled, CONVOLUTIONS, A76)
    return {name: cost.share for name, cost in found.items()}


def test_loops_of_a_library_of_others_are_found_and_told_apart(compiled):
    found = library_loops(compiled[0])
    assert {symbol.partition("_compute")[0] for symbol, _ in found} == CONVOLUTIONS.keys()
    assert all(multiplies_by_lane(loop) for _, loop in found)
    assert not multiplies_by_lane(loop("fmla v0.4s, v1.4s, v2.4s"))


def test_loops_of_bytes_of_others_are_none_of_float32():
    products = [f"   {4 * place:x}:\tfmla\tv{place}.4s, v30.4s, v31.4s" for place in range(9)]
    end = "  40:\tb.ne\t0 <loop>"
    assert len(float_loop([*products, end])) == 10
    assert float_loop([*products, "  24:\tsdot\tv9.4s, v30.16b, v31.4b[0]", end]) is None


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_reach_the_peak_of_a_core(shares, name):
    assert shares[name] >= 0.92


@pytest.mark.parametrize("board", ["rpi5", "rk3588", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_depthwise_convolutions_reach_what_the_table_lets_them(board, tmp_path):
    target = tvm.target.Target(dict(load_target(board).tvm))
    functions = scheduled({name: depthwise(target, *shape) for name, shape in DEPTHWISE.items()}, target)
    watch = built(functions, target, tmp_path / "loops.o")
    for number, core in enumerate(BOARDS[board]):
        found = costs(tmp_path / "loops.o", watch, functions, core)
        least = dict(zip(DEPTHWISE, LEAST_DEPTHWISE[board, number], strict=True))
        assert {name: found[name].share for name in least if found[name].share < least[name]} == {}


# By board and core, the least shares of the peak of 128 → 1000 and 128 → 4096.
@pytest.mark.parametrize(
    ("board", "number", "near", "far"),
    [("rpi5", 0, 0.64, 0.63), ("rk3588", 1, 0.82, 0.80), ("jetson-orin", 0, 0.91, 0.93)],
)
def test_dense_layers_load_beside_their_products(board, number, near, far, tmp_path):
    target, core = tvm.target.Target(dict(load_target(board).tvm)), BOARDS[board][number]
    functions = scheduled({"near": dense(1000), "far": dense(4096)}, target)
    found = costs(tmp_path / "loops.o", built(functions, target, tmp_path / "loops.o"), functions, core)
    assert found["near"].share >= near and found["far"].share >= far


# Of products of matrices pixels are put together, for 8 vectors of channels two instructions beside 32, for 2 beside 8.
@pytest.mark.parametrize(
    ("instruction", "target", "core", "least"), [("sdot", RPI5, A76, 0.85), ("smmla", N2, A710, 0.84)]
)
def test_products_of_bytes_reach_two_instructions_a_cycle(instruction, target, core, least, tmp_path):
    vectors, functions = integer_vectors(target), {}
    assert vectors.instruction == instruction
    for name, (size, inputs, outputs) in INTEGER_CONVOLUTIONS.items():
        shape = IntegerConvolution((1, size, size, inputs), (1, 1), outputs)
        functions[name] = integer_convolution(shape, vectors, next(tilings(shape, vectors, 4)))
    found = costs(tmp_path / "loops.o", built(functions, target, tmp_path / "loops.o"), functions, core)
    assert {name: round(cost.share, 2) for name, cost in found.items() if cost.share < least} == {}


# By board: tiles of a row of 14 that a block has, and the least share of all that the operator takes.
@pytest.mark.parametrize(
    ("board", "tiles", "of_all"), [("rpi4", 5, 0.78), ("rpi5", 5, 0.65), ("jetson-orin", 2, 0.71), ("rk3588", 5, 0.65)]
)
def test_winograds_products_reach_the_peak_where_tiles_run_over_the_end_of_a_task(board, tiles, of_all, tmp_path):
    target, core = tvm.target.Target(dict(load_target(board).tvm)), BOARDS[board][0]
    with target:
        module = ApplySchedules(cpu_rules())(tvm.IRModule({"winograd": winograd(56, 64)}))
    functions = {"winograd": module["winograd"]}
    cost = costs(tmp_path / "loops.o", built(functions, target, tmp_path / "loops.o"), functions, core)["winograd"]
    assert f"tiles={tiles}" in functions["winograd"].attrs["schedule"]
    assert cost.share >= 0.92
    # What is transformed is no part of the share but of the time, and each transform is found in the machine code.
    assert of_all <= cost.share_of_operator < cost.share
    transforms = [one for one in cost.work if not one.scheduled.sums]
    assert [one.scheduled.products for one in transforms] == [10, 60, 120]
    assert all(one.loop.multiplications in (one.scheduled.products, 2 * one.scheduled.products) for one in transforms)
    assert all(one.loop.multiplications > one.loop.products for one in transforms)
    assert 0 < cost.transforms < cost.milliseconds * (1 - of_all)


def test_without_pairs_of_loads_an_in_order_core_is_no_slower_than_a_product_a_cycle(tmp_path):
    target = tvm.target.Target(dict(load_target("rk3588").tvm))
    watch = built(scheduled({"pointwise": convolution(*CONVOLUTIONS["pointwise"])}), target, tmp_path / "loops.o")
    for core, least in zip(BOARDS["rk3588"], (0.92, 1.0), strict=True):
        assert costs(tmp_path / "loops.o", watch, ["pointwise"], core)["pointwise"].share >= least


@pytest.mark.parametrize("board", BOARDS)
def test_registers_are_moved_by_instructions_that_tables_have_as_faster(board, tmp_path):
    target = tvm.target.Target(dict(load_target(board).tvm))
    functions = scheduled({"depthwise": depthwise(target, 14, 8, 3, 1)}, target)
    watch = built(functions, target, tmp_path / "loops.o")
    instructions = "load", "product", "minimum", "maximum", "store"
    script = watch.loops["depthwise"].script()
    assert [name for name in instructions if f"neon_ordered_{name}" not in script] == []


@pytest.mark.parametrize(
    ("rule", "operator"),
    [(Convolution(), convolution(14, 96, 96, 1, 1)), (DepthwiseConvolution(), depthwise(RPI5, 28, 192, 3, 1))],
)
def test_the_default_is_near_the_best_of_what_a_tuner_chooses_from(rule, operator, tmp_path):
    candidates = [one.schedule.mod["main"] for one in itertools.islice(rule.candidates(operator, RPI5), 3)]
    functions = {f"way{number}": one.with_attr("target", RPI5) for number, one in enumerate(candidates)}
    found = costs(tmp_path / "loops.o", built(functions, RPI5, tmp_path / "loops.o"), functions, A76)
    times = [found[name].milliseconds for name in functions]
    assert len(times) > 1 and times[0] <= 1.05 * min(times[1:])


def loop(*instructions: str) -> tuple[Instruction, ...]:
    return tuple(Instruction(4 * place, *text.split(" ", 1)) for place, text in enumerate(instructions))


def test_a_core_that_starts_two_products_a_cycle_needs_half_as_many_cycles():
    products = loop(*(f"fmla v{number}.4s, v30.4s, v31.s[0]" for number in range(16)), "b.ne 0x0 <loop>")
    for board in ("rpi4", "rpi5"):
        (core,) = BOARDS[board]
        (cost,) = cost_loops([products], core)
        assert cost.products == 16 and cost.cycles == pytest.approx(16 / core.products, rel=0.1)
        assert cost.share(core) == pytest.approx(1, abs=0.1)


def test_short_vectors_and_scalars_are_parts_of_a_product():
    (cost,) = cost_loops([loop("fmla v0.2s, v1.2s, v2.2s", "fmadd s0, s1, s2, s3", "fmla v0.8h, v1.8h, v2.8h")], A76)
    assert cost.products == 0.75


def test_loops_are_matched_by_their_products():
    main, rest, other = (CostedLoop((), products, 1) for products in (24, 12, 7))
    tiles, last, unrolled = (ScheduledLoop(*one, 0) for one in (((10, 8), 24), ((3, 8), 12), ((5, 7), 1)))
    found = match_loops([last, tiles, unrolled], [other, main, rest])
    assert [work.loop for work in found] == [rest, main, other]
    assert [work.products for work in found] == [288, 1920, 35]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return loop_runner(tmp_path_factory.mktemp("loops"))


@pytest.mark.parametrize("threads", [2, 3, 8, 24, 96])
def test_parts_are_those_of_the_library(run: Run, threads: int) -> None:
    parts = [part for region in regions_of(threads) for part in region]
    assert parts == parts_of(run, threads)
    assert len(parts[0]) == UNITS // 4 // min(1 << (threads - 1).bit_length(), 32) and len(parts[-1]) == 1


@pytest.mark.parametrize("threads", [2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128])
def test_no_thread_has_much_more_than_the_others(threads: int) -> None:
    assert loop_milliseconds(2**20, [1.0] * threads, shared=True) <= 1.126 / threads


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_a_slow_core_costs_little_of_its_time(threads: int) -> None:
    cores = [5.0, *[1.0] * (threads - 1)]
    assert loop_milliseconds(2**20, cores, shared=True) <= 1.25 / (threads - 1 + 1 / 5)


def test_slow_cores_help_where_loops_are_shared_out_as_it_comes() -> None:
    fast, both = [1.0] * 4, [*[1.0] * 4, *[3.0] * 4]
    assert loop_milliseconds(1000, fast, shared=False) == loop_milliseconds(4, fast, shared=True) == 0.25
    assert loop_milliseconds(1000, both, shared=False) == 3 / 8
    # At the best 3 / 16: what four fast cores and a third of four do together.
    assert 3 / 16 < loop_milliseconds(1000, both, shared=True) < 1.15 * 3 / 16
    # Of four iterations a core does one, a slow one too.
    assert loop_milliseconds(4, both, shared=False) == 3 / 4
