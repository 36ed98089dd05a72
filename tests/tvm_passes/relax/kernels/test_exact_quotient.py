"""Quotients by fused products are those of a division, bit for bit."""

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from operator_cases import HOST, OTHERS
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels import exact_quotient
from tvm_passes.relax.kernels.mask_decoding import LANES
from tvm_passes.relax.loops.lower_loops import WRITTEN_AS_LOOPS

VECTORS = 1 << 16


def quotients(values: npt.NDArray[np.float32], divisors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the kernel makes of them."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("divide")
        T.func_attr({"tirx.is_scheduled": True, WRITTEN_AS_LOOPS: True})
        given, by, result = (T.arg(name, T.buffer((values.size,), "float32")) for name in ("given", "by", "result"))
        with T.sblock("root"):
            T.reads([])
            T.writes([])
            with T.serial(values.size // LANES) as vector:
                place = T.ramp(vector * LANES, 1, LANES)
                found = exact_quotient.quotient(
                    T.bind(given[place]), *exact_quotient.divisor_and_reciprocal(T.bind(by[place]))
                )
                T.buffer_store(result, found, [place])
    compiled = tvm.compile(tvm.IRModule({"divide": builder.get().with_attr("global_symbol", "divide")}), target=HOST)[
        "divide"
    ]
    arguments = [tvm.runtime.tensor(one) for one in (values, divisors, np.zeros_like(values))]
    compiled(*arguments)
    return arguments[-1].numpy()


def near_halves(generator: np.random.Generator, divisors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Numbers whose quotients lie a few units in the last place around k + 1/2, where rounding to integers turns."""
    halves = generator.integers(-127, 127, divisors.size) + 0.5
    values = (halves * divisors.astype(np.float64)).astype(np.float32)
    return (values.view(np.int32) + generator.integers(-2, 3, values.size, dtype=np.int32)).view(np.float32)


def test_quotients_are_those_of_a_division(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    divisors = np.exp2(generator.uniform(-60, 100, VECTORS * LANES)).astype(np.float32)
    divisors[: len(divisors) // 2] = generator.uniform(0.001, 0.01, len(divisors) // 2)
    values = near_halves(generator, divisors)
    values[::5] = (generator.uniform(-127, 127, len(values[::5])) * divisors[::5]).astype(np.float32)
    assert np.array_equal(quotients(values, divisors), values / divisors)
    monkeypatch.setattr(exact_quotient, "_CORRECTIONS", 0)
    found = quotients(values, divisors)
    assert not np.array_equal(np.rint(found), np.rint(values / divisors))


def test_divisors_that_are_too_large_give_zero() -> None:
    divisors = np.resize(np.float32([np.inf, 3e38]), LANES)
    assert np.array_equal(np.rint(quotients(np.full(LANES, 1.5, np.float32), divisors)), np.zeros(LANES))


@pytest.mark.parametrize(("name", "fused"), [("avx512", True), ("neon", True), ("sse", False)])
def test_only_where_the_cpu_has_the_instruction(name: str, fused: bool) -> None:
    assert exact_quotient.has_fused_products(OTHERS[name]) is fused
