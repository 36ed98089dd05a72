"""Quotients by fused products, rounded to integers, are those of a division, each of them."""

from collections.abc import Iterator
from fractions import Fraction

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
BITS = 24  # Of a float32's significand.
FARTHEST = 40  # In units of 2⁻⁴⁹ of a quotient; those by products are at most 4 off before they are rounded.


def quotients(values: npt.NDArray[np.float32], divisors: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """What the kernel makes of them."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("divide")
        T.func_attr({"tirx.is_scheduled": True, WRITTEN_AS_LOOPS: True})
        given, by = (T.arg(name, T.buffer((values.size,), "float32")) for name in ("given", "by"))
        result = T.arg("result", T.buffer((values.size,), "int32"))
        with T.sblock("root"):
            T.reads([])
            T.writes([])
            with T.serial(values.size // LANES) as vector:
                place = T.ramp(vector * LANES, 1, LANES)
                reciprocals = exact_quotient.reciprocals(T.bind(by[place]))
                T.buffer_store(result, exact_quotient.rounded_quotient(given[place], *reciprocals), [place])
    compiled = tvm.compile(tvm.IRModule({"divide": builder.get().with_attr("global_symbol", "divide")}), target=HOST)[
        "divide"
    ]
    arguments = [tvm.runtime.tensor(one) for one in (values, divisors, np.zeros(values.shape, np.int32))]
    compiled(*arguments)
    return arguments[-1].numpy()


def near_halves(generator: np.random.Generator, divisors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Numbers whose quotients lie a few units in the last place around k + 1/2, where rounding to integers turns."""
    halves = generator.integers(-127, 127, divisors.size) + 0.5
    values = (halves * divisors.astype(np.float64)).astype(np.float32)
    return (values.view(np.int32) + generator.integers(-2, 3, values.size, dtype=np.int32)).view(np.float32)


def hardest() -> Iterator[tuple[float, int]]:
    """All quotients a / d that are next to a number midway between k + 1/2 and the float32 beside it.

    With such a number M / 2ˢ, M odd and d of 24 bits, a · 2ˣ = M · d + c says how near: by so few c, each of which
    leaves one d for x bits, that all of them can be asked.
    """
    for k in range(127):
        half = Fraction(2 * k + 1, 2)
        unit = Fraction(2) ** (int(k).bit_length() - BITS)  # From k + 1/2 to the next float32.
        for middle in (half - unit / (4 if k == 0 else 2), half + unit / 2):
            odd, scale = middle.numerator, middle.denominator
            for bits in (BITS, BITS + 1, BITS + 2):
                inverse = pow(odd, -1, 1 << bits)
                for off in range(-FARTHEST, FARTHEST + 1):
                    divisor = -off * inverse % (1 << bits)
                    value = (odd * divisor + off) >> bits
                    if all(one >> (BITS - 1) == 1 for one in (divisor, value)):
                        yield float(Fraction(value << bits, scale)), divisor


def test_quotients_are_those_of_a_division(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    divisors = np.exp2(generator.uniform(-60, 100, VECTORS * LANES)).astype(np.float32)
    divisors[: len(divisors) // 2] = generator.uniform(0.001, 0.01, len(divisors) // 2)
    values = near_halves(generator, divisors)
    values[::5] = (generator.uniform(-127, 127, len(values[::5])) * divisors[::5]).astype(np.float32)
    assert np.array_equal(quotients(values, divisors), np.rint(values / divisors))
    monkeypatch.setattr(
        exact_quotient, "_lacking", lambda _divisor, reciprocal: reciprocal * T.broadcast(T.float32(0), 8)
    )
    assert not np.array_equal(quotients(values, divisors), np.rint(values / divisors))


def test_the_hardest_quotients_are_those_of_a_division() -> None:
    cases = list(hardest())
    assert len(cases) > 5000
    values, divisors = (
        np.resize(np.array(one, np.float64), -(-len(cases) // LANES) * LANES) for one in zip(*cases, strict=True)
    )
    values, divisors = values.astype(np.float32), divisors.astype(np.float32)
    expected = np.rint(values / divisors)
    for sign in (1, -1):
        assert np.array_equal(quotients(sign * values, divisors), sign * expected)


def test_divisors_that_are_too_large_give_zero() -> None:
    divisors = np.resize(np.float32([np.inf, 3e38]), LANES)
    assert not quotients(np.full(LANES, 1.5, np.float32), divisors).any()


@pytest.mark.parametrize(("name", "fused"), [("avx512", True), ("neon", True), ("sse", False)])
def test_only_where_the_cpu_has_the_instruction(name: str, fused: bool) -> None:
    assert exact_quotient.has_fused_products(OTHERS[name]) is fused
