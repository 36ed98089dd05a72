"""A product of floats that is rounded before anything is added to it, as int8 states it of every one.

LLVM would make one fused multiply-add of both, with one rounding, where the CPU has that.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T


def rounded(product: tirx.Expr, dtype: str) -> tirx.Expr:
    """The product, float or a vector of floats of the given dtype; LLVM's targets alone know it."""
    return T.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", product)
