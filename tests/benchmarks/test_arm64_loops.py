"""The loops of operators for arm64, by the tables of llvm-mca: they stay near the core's peak. Nothing is timed."""

import sys
from pathlib import Path

import pytest
import tvm
from tvm import te, tirx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from arm64_loops.cores import BOARDS
from arm64_loops.llvm_mca import CostedLoop, cost_loops
from arm64_loops.operators import cost_operator, match_loops, read_operators
from arm64_loops.peer_wheels import library_loops, multiplies_by_lane
from arm64_loops.scheduled_loops import CompileWatch, ScheduledLoop
from arm64_loops.uneven_cores import loop_milliseconds, regions_of

from ksm_hw.artifact.manifest import OperatorEntry
from ksm_hw.toolchains.disassembly import Instruction
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.apply_schedules import ApplySchedules
from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.loops.share_loops import UNITS
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules import cpu_rules
from tvm_passes.relax.schedules.cpu.tile_model import ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

RPI5 = tvm.target.Target(dict(load_target("rpi5").tvm))
A76 = BOARDS["rpi5"][0]

# Pixels in a row and a column, channels before and behind, kernel, stride: of MobileNetV2 and ResNet-18.
CONVOLUTIONS = {
    "pointwise": (14, 96, 576, 1, 1),
    "pointwise_on_an_odd_map": (7, 160, 960, 1, 1),
    "strided": (28, 64, 128, 3, 2),
}
# Three channels are no vector: each input is a load of its own, and tiles are ranked by that.
FIRST_LAYER = {"first_layer": (224, 3, 32, 3, 2)}


def convolution(size: int, inputs: int, outputs: int, kernel: int, stride: int) -> tirx.PrimFunc:
    """With packed weights, as `WeightLayouts` has it."""
    pixels = (size // stride) ** 2
    (_, lanes), _ = ranked_tiles(pixels, outputs, kernel**2 * inputs, vector_unit(RPI5), "float32")[0]
    data = te.placeholder((1, size, size, inputs), name="data")
    weight = te.placeholder((outputs // lanes, kernel, kernel, inputs, lanes), name="weight")
    around = (kernel // 2,) * 4
    result = packed_convolution(data, weight, (stride, stride), around, (1, 1), 1)
    return te.create_prim_func([data, weight, result], index_dtype_override="int64")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompileWatch]:
    """`CONVOLUTIONS` as an object file for a Raspberry Pi 5, and what the compiler did."""
    shapes = CONVOLUTIONS | FIRST_LAYER
    functions = {name: convolution(*shape).with_attr("global_symbol", name) for name, shape in shapes.items()}
    library = tmp_path_factory.mktemp("arm64") / "loops.o"
    watch = CompileWatch()
    with RPI5, tvm.transform.PassContext(instruments=[watch]):
        module = ApplySchedules(cpu_rules())(tvm.IRModule(functions))
        tirx.build(module, target=by_tables(RPI5), pipeline=loop_pipeline()).write_to_file(str(library))
    return library, watch


@pytest.fixture(scope="module")
def shares(compiled: tuple[Path, CompileWatch]) -> dict[str, float | None]:
    """Of the peak of its core, for each of `CONVOLUTIONS`."""
    library, watch = compiled
    entries = {name: OperatorEntry(None, 0, (), "") for name in CONVOLUTIONS | FIRST_LAYER}
    return {one.symbol: cost_operator(one, A76).share for one in read_operators(library, entries, watch)}


def test_loops_of_a_library_of_others_are_found_and_told_apart(compiled):
    found = library_loops(compiled[0])
    assert {symbol.partition("_compute")[0] for symbol, _ in found} == (CONVOLUTIONS | FIRST_LAYER).keys()
    assert all(multiplies_by_lane(loop) for symbol, loop in found if not symbol.startswith(*FIRST_LAYER))
    assert not multiplies_by_lane(loop("fmla v0.4s, v1.4s, v2.4s"))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_reach_the_peak_of_a_core(shares, name):
    assert shares[name] >= 0.92


def test_the_first_layer_of_a_network(shares):
    assert shares["first_layer"] >= 0.53


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


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_parts_are_those_of_the_library(threads: int) -> None:
    parts = [part for region in regions_of(threads) for part in region]
    assert [unit for part in parts for unit in part] == [*range(UNITS)]
    assert len(parts[0]) == UNITS // 4 // (1 << (threads - 1).bit_length()) and len(parts[-1]) == 1


def test_slow_cores_help_where_loops_are_shared_out_as_it_comes() -> None:
    fast, both = [1.0] * 4, [*[1.0] * 4, *[3.0] * 4]
    assert loop_milliseconds(1000, fast, shared=False) == loop_milliseconds(4, fast, shared=True) == 0.25
    assert loop_milliseconds(1000, both, shared=False) == 3 / 8
    # At the best 3 / 16: what four fast cores and a third of four do together.
    assert 3 / 16 < loop_milliseconds(1000, both, shared=True) < 1.15 * 3 / 16
    # Of four iterations a core does one, a slow one too.
    assert loop_milliseconds(4, both, shared=False) == 3 / 4
