"""Quotients of many numbers by one, to the last bit, without the division that takes a CPU several times as long.

With r = 1 / d rounded, a · r is within two units in the last place of a / d. A fused multiply-add gives what is left
of a behind such a quotient without rounding, and another one adds that, times r. The first correction is one unit off
at most; then the second is a / d rounded (Markstein: r must be 1 / d rounded, which a division makes it).
"""

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import target_has_features

from tvm_passes.relax.kernels.mask_decoding import LANES, VECTOR, Permutation, permutation_of

_LARGEST_DIVISOR = 2.0**126  # Beyond it r has fewer bits.
_CORRECTIONS = 2


def has_fused_products(target: tvm.target.Target) -> bool:
    """Whether the CPU adds to a product in one instruction; others would call a function for each number."""
    return target_has_features("fma", target) or permutation_of(target) is Permutation.NEON


def divisor_and_reciprocal(divisor: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
    """What `quotient` divides by, of 8 float32 of 2⁻⁶⁰ and more. 2¹²⁶ stands for what is larger, infinity too."""
    divisor = T.bind(T.min(divisor, T.broadcast(T.float32(_LARGEST_DIVISOR), LANES)))
    return divisor, T.bind(T.broadcast(T.float32(1), LANES) / divisor)


def quotient(values: tirx.Expr, divisor: tirx.Expr, reciprocal: tirx.Expr) -> tirx.Expr:
    """`values / divisor`, 8 float32 each: rounded as division does, where it is 2⁻²⁴ to 2²⁴, and else near it."""
    found = values * reciprocal
    for _ in range(_CORRECTIONS):
        found = T.bind(found)
        left = T.bind(_product_and(-found, divisor, values))
        found = _product_and(left, reciprocal, found)
    return T.bind(found)


def _product_and(left: tirx.Expr, right: tirx.Expr, added: tirx.Expr) -> tirx.Expr:
    """`left · right + added`, rounded once."""
    return T.call_llvm_pure_intrin(VECTOR, "llvm.fma", left, right, added)
