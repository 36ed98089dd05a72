"""The cores of arm64 boards: which of LLVM's tables describes each, and how fast its clock runs."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """A core.

    Attributes:
        title: for people.
        table: the CPU of llvm-mca whose table is the core's.
        products: multiply-adds of whole 128-bit registers that it starts in a cycle.
        gigahertz: of its clock on the board.
        count: cores of this kind on the board.
    """

    title: str
    table: str
    products: int
    gigahertz: float
    count: int


# By target. For Cortex-A76 and A78AE LLVM takes the tables of an A57. Neoverse-N1 is the server's form of the A76, and
# Neoverse-N2 that of the A710, which has A78's units: two for products, three for loads. By the table of the A55 two
# products start in a cycle, but its units are half as wide as a register: one it is.
BOARDS: Mapping[str, tuple[Core, ...]] = {
    "rpi4": (Core("Cortex-A72", "cortex-a72", 1, 1.8, 4),),
    "rpi5": (Core("Cortex-A76", "neoverse-n1", 2, 2.4, 4),),
    "jetson-orin": (Core("Cortex-A78AE", "neoverse-n2", 2, 1.5, 6),),
    "rk3588": (Core("Cortex-A76", "neoverse-n1", 2, 2.4, 4), Core("Cortex-A55", "cortex-a55", 1, 1.8, 4)),
}
