"""What a schedule must know of a CPU: its vector registers, and what one of its cores starts in a cycle."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tvm.target import Target
from tvm.target.codegen import target_has_features

from tvm_passes.relax.schedules.base.blocks import widest_vector
from tvm_passes.relax.schedules.base.precision import value_bytes

LINE_BYTES = 64  # Of the caches of x86-64 and of nearly every 64-bit ARM core.
WAY_BYTES = 4096  # Of first-level caches of x86-64: lines as far apart share a set.


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
    loads: int = 2
    """Loads that it starts in a cycle."""
    latency: int = 4
    """Cycles until a multiply-add is done."""
    slots: float = math.inf
    """All that it starts in a cycle: a multiply-add is one, a load `load_slots`; infinite where that is no limit."""
    load_slots: float = 1
    """See `slots`."""
    by_lane: bool = False
    """Whether it multiplies a register by one value of another, as NEON does; else each such value is a load."""
    shorter_last: bool = False
    """Whether the last vector of a tile may be shorter than the others, where that makes fewer of them."""
    joins_groups: bool = False
    """Whether a vector with a value of each of several groups is had in the time of one multiply-add."""
    near_rate: float = 21
    """Bytes of weights that arrive in a cycle from the first-level cache."""
    far_rate: float = 14.5
    """Bytes of weights that arrive in a cycle from behind it."""
    first_rate: float = math.inf
    """Bytes of weights that arrive in a cycle when they are used first; infinite where that is no limit."""
    input_rate: float = math.inf
    """Bytes of the input for which a core waits a cycle; infinite where it waits for none."""
    near_ways: float = math.inf
    """Lines that a set of the first-level cache holds; infinite where that was not looked at."""
    cache_bytes: int = 0
    """Of a core's second-level cache, where it is known to be large; else 0."""

    @property
    def has_spare_slots(self) -> bool:
        """Whether a core that starts all multiply-adds it can still starts as many other instructions."""
        return self.slots > 2 * self.products

    def lanes(self, dtype: str) -> int:
        """Values of a type in one register.

        Raises:
            ValueError: as `value_bytes`.
        """
        return self.register_bytes // value_bytes(dtype)


def _neon(products: int, loads: int, latency: int, slots: float, load_slots: float) -> VectorUnit:
    """A core with NEON."""
    return VectorUnit(16, 32, 1, products, loads, latency, slots, load_slots, by_lane=True)


# What LLVM's tables say of them, as llvm-mca counts (`benchmarks/arm64_loops.py`): of A76 and A78 those of Neoverse-N1
# and N2. The A55, which starts all in its order, does a load or a product.
_ARM_CORES: Mapping[str, VectorUnit] = {
    "cortex-a55": _neon(products=1, loads=1, latency=4, slots=1, load_slots=1),
    "cortex-a72": _neon(products=1, loads=1, latency=10, slots=3, load_slots=1),
    "cortex-a76": _neon(products=2, loads=2, latency=4, slots=3, load_slots=2),
    "cortex-a78ae": _neon(products=2, loads=3, latency=4, slots=5, load_slots=1),
}


@cache  # A target's features are asked for with every candidate, and each answer takes half a millisecond.
def vector_unit(target: Target) -> VectorUnit:
    """The vector unit of an llvm target, read from its `mcpu`, `mattr` and `mtriple`.

    TVM's own `llvm_get_vector_width` answers 512 bits for every x86 CPU, so the features decide. An unknown CPU gets
    128 bits and 16 registers, which every x86-64 and 64-bit ARM core has.
    """
    cores = int(target.attrs.get("num-cores", 1))
    if target_has_features("avx512f", target):
        # Of 512 bits or less it starts two a cycle; one that halves them starts four of 256, which are none the dearer.
        products = 1 if _halves_vectors(target) else 2
        unit = VectorUnit(register_bytes=64, registers=32, cores=cores, products=products)
        if products == 1:
            return unit
        # Second-level caches of 1 MB and more, which bring twice as much in a cycle: fitted to a Cascade Lake's times.
        return dataclasses.replace(
            unit,
            shorter_last=True,
            joins_groups=True,
            near_rate=64,
            far_rate=28,
            first_rate=8,
            input_rate=20,
            near_ways=8,
            cache_bytes=1 << 20,
        )
    if target_has_features("avx", target):
        return VectorUnit(register_bytes=32, registers=16, cores=cores)
    if "aarch64" in str(target.attrs.get("mtriple", "")):
        unit = _ARM_CORES.get(str(target.attrs.get("mcpu", "")), _ARM_CORES["cortex-a76"])
        return dataclasses.replace(unit, cores=cores)
    return VectorUnit(register_bytes=16, registers=16, cores=cores)


def vector_widths(channels: int, unit: VectorUnit, dtype: str) -> list[int]:
    """The vectors that hold so many neighbouring channels, none of which runs over the end: powers of two.

    All are as wide, but for the last one of a unit with `shorter_last`.
    """
    most = unit.lanes(dtype)
    even = widest_vector(channels, most)
    whole, rest = divmod(channels, most)
    if unit.shorter_last and whole and rest > 1 and rest.bit_count() == 1:
        return [most] * whole + [rest]
    return [even] * (channels // even)


def _halves_vectors(target: Target) -> bool:
    """Whether a CPU does instructions on 512 bits as two on 256: AMD's Zen 4, which has no wider units."""
    return str(target.attrs.get("mcpu", "")) == "znver4"
