"""Compiles a bundle for a board, and costs each operator's loops."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm

from arm64_loops.cores import Core
from arm64_loops.llvm_mca import CostedLoop, cost_loops, products_of
from arm64_loops.scheduled_loops import CompileWatch, ScheduledLoop, scheduled_loops
from ksm_hw.artifact.manifest import LIBRARY, OperatorEntry, read_manifest
from ksm_hw.artifact.modes import Precision
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import Bundle
from ksm_hw.report.innermost_loops import innermost_loops
from ksm_hw.report.operator_names import operator_name
from ksm_hw.toolchains.disassembly import Instruction, disassemble, loops_function
from ksm_hw.toolchains.targets import CompileTarget

_LEAST = 1 / 4  # Products of a step of a loop that multiplies and adds.


@dataclass(frozen=True)
class CompiledOperator:
    """An operator of a network's inference.

    Attributes:
        symbol: in the library.
        calls: in an inference.
        entry: of the artifact's manifest.
        scheduled: its loops as they were scheduled.
        loops: the innermost of its machine code that multiply and add.
    """

    symbol: str
    calls: int
    entry: OperatorEntry
    scheduled: tuple[ScheduledLoop, ...]
    loops: tuple[tuple[Instruction, ...], ...]

    @property
    def name(self) -> str:
        """What it does, such as `conv2d 3×3 s2 + add + relu`."""
        return operator_name(self.symbol, self.entry.shapes)


@dataclass(frozen=True)
class Work:
    """What a scheduled loop is in machine code.

    Attributes:
        scheduled: the loop as it was scheduled.
        loop: of the machine code; None where LLVM left no loop of it.
    """

    scheduled: ScheduledLoop
    loop: CostedLoop | None

    @property
    def products(self) -> float:
        """Multiplications of whole registers in all steps."""
        return self.scheduled.products * self.scheduled.steps

    @property
    def steps(self) -> float:
        """Of the loop of machine code, which may do several of the scheduled one at once."""
        return self.scheduled.steps if self.loop is None else self.products / self.loop.multiplications

    def cycles(self, core: Core) -> float:
        """Of all steps: by the table, or at the core's peak where there is no loop."""
        return self.products / core.products if self.loop is None else self.steps * self.loop.cycles


@dataclass(frozen=True)
class OperatorCost:
    """An operator by the tables of a core.

    Attributes:
        operator: what was compiled.
        core: whose tables.
        work: its loops that multiply.
    """

    operator: CompiledOperator
    core: Core
    work: tuple[Work, ...]

    @property
    def share(self) -> float | None:
        """Of the core's peak, of all loops that multiply and add to sums; None without any."""
        cycles = sum(one.cycles(self.core) for one in self._sums)
        return self._least_cycles / cycles if cycles else None

    @property
    def share_of_operator(self) -> float:
        """The same in all its milliseconds: what else multiplies, and what is moved, included."""
        return self._least_cycles / self.core.gigahertz / 1e6 / self.milliseconds

    @property
    def transforms(self) -> float:
        """Milliseconds of a call's loops that multiply but add to no sums: Winograd's transforms and what is fused."""
        cycles = sum(one.cycles(self.core) for one in self.work if not one.scheduled.sums)
        return cycles / self.core.gigahertz / 1e6

    @property
    def _sums(self) -> list[Work]:
        return [one for one in self.work if one.scheduled.sums]

    @property
    def _least_cycles(self) -> float:
        """Of the multiply-adds to sums, at the core's peak."""
        return sum(one.products for one in self._sums) / self.core.products

    @property
    def milliseconds(self) -> float:
        """Of a call on one core, caches left out; what neither multiplies nor adds takes a cycle a register moved."""
        return sum(milliseconds for _, milliseconds in self.nests)

    @property
    def nests(self) -> list[tuple[int, float]]:
        """Of each loop the steps of the outermost around it, which is the parallel one, and its milliseconds."""
        cycles = [(one.scheduled, one.cycles(self.core)) for one in self.work]
        cycles += [(loop, loop.moved * loop.steps) for loop in self.operator.scheduled if loop.products < _LEAST]
        return [((loop.extents or (1,))[0], count / self.core.gigahertz / 1e6) for loop, count in cycles]


def compile_operators(
    bundle: Bundle, target: CompileTarget, precision: Precision = "float32"
) -> list[CompiledOperator]:
    """Compiles a bundle with the product's own compiler; returns the operators of an inference.

    Raises:
        UserError: as `compile_bundle` and `disassemble`.
    """
    watch = CompileWatch()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        with tvm.transform.PassContext(instruments=[watch]):
            compile_bundle(bundle, target, artifact, precision=precision)
        return read_operators(artifact / LIBRARY, read_manifest(artifact).operators, watch)


def read_operators(library: Path, entries: Mapping[str, OperatorEntry], watch: CompileWatch) -> list[CompiledOperator]:
    """The operators of a library for arm64 that was compiled under a watch.

    Args:
        library: a shared library or an object file.
        entries: what the compiler noted of each operator, by its symbol.
        watch: what it saw.
    """
    functions = disassemble(library, "aarch64")
    return [
        CompiledOperator(
            symbol,
            watch.calls[symbol],
            entry,
            tuple(scheduled_loops(watch.loops[symbol])),
            multiplying_loops(functions.get(loops_function(symbol, functions), ())),
        )
        for symbol, entry in entries.items()
    ]


def multiplying_loops(function: Sequence[Instruction]) -> tuple[tuple[Instruction, ...], ...]:
    """The innermost loops of a function that multiply and add."""
    loops = (loop.instructions for loop in innermost_loops(function))
    return tuple(loop for loop in loops if products_of(loop) >= _LEAST)


def cost_operator(operator: CompiledOperator, core: Core) -> OperatorCost:
    """What a core needs for an operator."""
    scheduled = [loop for loop in operator.scheduled if loop.products >= _LEAST]
    return OperatorCost(operator, core, tuple(match_loops(scheduled, cost_loops(operator.loops, core))))


def match_loops(scheduled: Sequence[ScheduledLoop], loops: Sequence[CostedLoop]) -> list[Work]:
    """Which loop of machine code does a scheduled one's work.

    One that multiplies as often in a step, or as the loop around it where LLVM unrolled it, or some steps at once; else
    the one that comes nearest. The longest work chooses first, of the loops that are left if it can.
    """
    left, found = list(loops), {}
    for place in sorted(range(len(scheduled)), key=lambda place: -scheduled[place].products * scheduled[place].steps):
        chosen = _fitting(scheduled[place], left) or _fitting(scheduled[place], loops)
        if chosen in left:
            left.remove(chosen)
        found[place] = chosen or min(loops, key=lambda loop: _apart(scheduled[place], loop), default=None)
    return [Work(loop, found[place]) for place, loop in enumerate(scheduled)]


def _apart(scheduled: ScheduledLoop, loop: CostedLoop) -> float:
    return abs(math.log(loop.multiplications / scheduled.products))


def _fitting(scheduled: ScheduledLoop, loops: Sequence[CostedLoop]) -> CostedLoop | None:
    step = scheduled.products
    for extent in reversed((*scheduled.extents, 1)):
        step *= extent
        # Of two versions of a tile the one without conditions is shorter, and does most of the work.
        if exact := [loop for loop in loops if loop.multiplications == step]:
            return min(exact, key=lambda loop: len(loop.instructions))
    several = [loop for loop in loops if loop.multiplications % scheduled.products == 0]
    return max(several, key=lambda loop: loop.multiplications, default=None)
