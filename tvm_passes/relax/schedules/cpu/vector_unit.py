"""What a schedule must know of a CPU: the width of its vectors and how many of them it holds in registers."""

from dataclasses import dataclass
from functools import cache

from tvm.target import Target
from tvm.target.codegen import target_has_features

from tvm_passes.relax.schedules.base.precision import value_bytes

LINE_BYTES = 64  # Of the caches of x86-64 and of nearly every 64-bit ARM core.


@dataclass(frozen=True)
class VectorUnit:
    """The vector registers of one CPU core."""

    register_bytes: int
    """Of one register."""
    registers: int
    """How many registers the instruction set names."""
    cores: int
    """Cores that share the work; 1 where the target does not say."""
    products: int = 2
    """Multiply-adds of whole registers that a core starts in a cycle."""

    def lanes(self, dtype: str) -> int:
        """Values of a type in one register.

        Raises:
            ValueError: as `value_bytes`.
        """
        return self.register_bytes // value_bytes(dtype)


@cache  # A target's features are asked for with every candidate, and each answer takes half a millisecond.
def vector_unit(target: Target) -> VectorUnit:
    """The vector unit of an llvm target, read from its `mcpu`, `mattr` and `mtriple`.

    TVM's own `llvm_get_vector_width` answers 512 bits for every x86 CPU, so the features decide. An unknown CPU gets
    128 bits and 16 registers, which every x86-64 and 64-bit ARM core has.
    """
    cores = int(target.attrs.get("num-cores", 1))
    if target_has_features("avx512f", target):
        return VectorUnit(register_bytes=64, registers=32, cores=cores, products=1 if _halves_vectors(target) else 2)
    if target_has_features("avx", target):
        return VectorUnit(register_bytes=32, registers=16, cores=cores)
    if "aarch64" in str(target.attrs.get("mtriple", "")):
        return VectorUnit(register_bytes=16, registers=32, cores=cores)
    return VectorUnit(register_bytes=16, registers=16, cores=cores)


def _halves_vectors(target: Target) -> bool:
    """Whether a CPU does instructions on 512 bits as two on 256: AMD's Zen 4, which has no wider units."""
    return str(target.attrs.get("mcpu", "")) == "znver4"
