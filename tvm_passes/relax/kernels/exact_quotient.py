"""Quotients of many numbers by one, rounded to integers, without the division that takes a CPU several times as long.

What is asked for is `rint(a / d)`, the quotient rounded to float32 as a division does it and then to an integer. With
r = 1 / d rounded, a fused multiply-add gives 1 - d · r without rounding, and so what r lacks: s, rounded, 1 / d = r + s
within 2⁻⁴⁸ of it. Then a · s rounded, and a · r added to it by another fused one, is a / d within 2⁻⁴⁷ of it before its
one rounding. It rounds to another float32 than a / d only if a number midway between two of them is so near; and that
matters only beside k + 1/2, where integers turn. A test asks all divisors that have such a quotient beside one of 0 to
127 and a half: each rounds as the division does.
"""

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import target_has_features

from tvm_passes.relax.kernels.mask_decoding import LANES, VECTOR, Permutation, permutation_of

_LARGEST_DIVISOR = 2.0**126  # Beyond it r has fewer bits.
INTEGERS = f"int32x{LANES}"


def has_fused_products(target: tvm.target.Target) -> bool:
    """Whether the CPU adds to a product in one instruction; others would call a function for each number."""
    return target_has_features("fma", target) or permutation_of(target) is Permutation.NEON


def reciprocals(divisor: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """What `rounded_quotient` multiplies by, of 8 float32 of 2⁻⁶⁰ and more: r and s.

    Of more than 2¹⁰⁰ s has fewer bits, so that quotients midway between integers may round to either; 2¹²⁶ stands for
    what is larger, infinity too.
    """
    one = T.broadcast(T.float32(1), LANES)
    divisor = T.bind(T.min(divisor, T.broadcast(T.float32(_LARGEST_DIVISOR), LANES)))
    reciprocal = T.bind(one / divisor)
    return reciprocal, _lacking(divisor, reciprocal)


def _lacking(divisor: tirx.Expr, reciprocal: tirx.Expr) -> tirx.Expr:
    """What a rounded reciprocal lacks: 1 / d - r = e · r · (1 + e + …), by e = 1 - d · r."""
    left = T.bind(_product_and(-divisor, reciprocal, T.broadcast(T.float32(1), LANES)))
    lacking = T.bind(left * reciprocal)
    return T.bind(_product_and(lacking, left, lacking))


def rounded_quotient(values: tirx.Expr, reciprocal: tirx.Expr, lacking: tirx.Expr) -> tirx.Expr:
    """`rint(values / divisor)`, int32, of 8 float32 whose quotients are -127.5 to 127.5."""
    values = T.bind(values)
    return nearest_integers(_product_and(values, reciprocal, T.bind(values * lacking)))


def nearest_integers(values: tirx.Expr) -> tirx.Expr:
    """8 float32 as int32, ties to even."""
    return T.call_llvm_pure_intrin(INTEGERS, "llvm.lrint", values)


def _product_and(left: tirx.Expr, right: tirx.Expr, added: tirx.Expr) -> tirx.Expr:
    """`left · right + added`, rounded once."""
    return T.call_llvm_pure_intrin(VECTOR, "llvm.fma", left, right, added)
