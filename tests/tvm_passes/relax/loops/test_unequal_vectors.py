"""Tiles whose last vector is shorter: 24 channels are vectors of 16 and 8 on AVX-512, and the result is torch's."""

import re

import numpy as np
import pytest
import tvm
from operator_cases import HOST, OTHERS, values
from tvm import te
from tvm.s_tir import Schedule

from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.loops.unequal_vectors import UnequalVectors, in_unequal_vectors
from tvm_passes.relax.pipeline import loop_pipeline
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.tile_model import ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_widths

AVX512 = OTHERS["avx512"]
WIDE = VectorUnit(register_bytes=64, registers=32, cores=1, shorter_last=True)


def pixelwise(channels: int) -> tvm.tirx.PrimFunc:
    """A 1×1 convolution [1, 4, 6, 20] → [1, 4, 6, channels] with packed weights."""
    data = te.placeholder((1, 4, 6, 20), name="data")
    weight = te.placeholder((1, 1, 1, 20, channels), name="weight")
    return te.create_prim_func(
        [data, weight, packed_convolution(data, weight, (1, 1), (0, 0, 0, 0), (1, 1), 1)]
    ).with_attr("global_symbol", "main")


@pytest.mark.parametrize(
    ("channels", "widths"),
    [(24, [16, 8]), (40, [16, 16, 8]), (32, [16, 16]), (8, [8]), (48, [16] * 3), (28, [4] * 7), (17, [1] * 17)],
)
def test_the_last_vector_is_what_is_left_where_it_is_a_power_of_two(channels: int, widths: list[int]) -> None:
    assert vector_widths(channels, WIDE, "float32") == widths


@pytest.mark.parametrize("unit", [VectorUnit(32, 16, 1), VectorUnit(64, 32, 1, products=1), VectorUnit(16, 32, 1)])
def test_on_other_cores_all_vectors_are_as_wide(unit: VectorUnit) -> None:
    assert all(len(set(vector_widths(channels, unit, "float32"))) == 1 for channels in range(1, 65))


@pytest.mark.parametrize("channels", [24, 40])
def test_the_model_thinks_as_much_more_of_them(channels: int) -> None:
    (_, chosen), speed = ranked_tiles(784, channels, 144, WIDE, "float32")[0]
    _, before = ranked_tiles(784, channels, 144, VectorUnit(64, 32, 1), "float32")[0]
    assert chosen == channels and speed > 1.45 * before


def test_code_for_avx512_has_both_vectors_and_keeps_them_in_registers() -> None:
    schedule = Convolution().apply(pixelwise(24), AVX512, False)
    assert schedule is not None
    text = tvm.tirx.build(schedule.mod, target=AVX512, pipeline=loop_pipeline()).inspect_source("ll")
    assert {"<16 x float>", "<8 x float>"} <= set(re.findall(r"<\d+ x float>", text))
    assert not re.search(r"alloca .*(float|x i8\])", text)


@pytest.mark.parametrize("channels", [24, 40])
def test_results_equal_numpy(channels: int) -> None:
    """On whichever machine this is: AVX2 has the vectors of 16 too, two registers each."""
    data, weight = values((1, 4, 6, 20), (1, 1, 1, 20, channels))
    schedule = Convolution().apply(pixelwise(channels), AVX512, False)
    assert schedule is not None
    module = tvm.IRModule({"main": schedule.mod["main"].without_attr("target")})
    result = tvm.runtime.tensor(np.zeros((1, 4, 6, channels), "float32"))
    main = tvm.tirx.build(module, target=HOST, pipeline=loop_pipeline())["main"]
    main(tvm.runtime.tensor(data), tvm.runtime.tensor(weight), result)
    np.testing.assert_allclose(result.numpy(), data @ weight[0, 0, 0], rtol=1e-5, atol=2e-5)


def test_a_loop_is_cut_where_it_is_marked() -> None:
    source = te.placeholder((40,), name="source")
    schedule = Schedule(te.create_prim_func([source, te.compute((40,), lambda i: source[i] + 1, name="more")]))
    in_unequal_vectors(schedule, schedule.get_loops(schedule.get_sblock("more"))[0], 16)
    text = UnequalVectors()(schedule.mod).script()
    assert [int(length) for length in re.findall(r"T\.vectorized\((?:T\.int64\()?(\d+)", text)] == [16, 16, 8]
