"""The order in which a core that takes instructions as they come waits least for them, in a number of registers.

By LLVM's table of the Cortex-A55 two instructions start in a cycle, one of them a load, and values are there three or
four cycles later; none starts in front of one whose value is there sooner, and that did not start before it. A core
that takes instructions out of their order loses nothing by it.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

_STARTED = 2  # Instructions in a cycle.
# Steps that are looked at for one that can start; of these the first, among which loads are, for the value of one that
# is further ahead would lie in a register for long; and of these the first, whose loads start before all else.
_LOOKED_AT, _AHEAD, _DUE = 80, 24, 8
# The last registers, which only loads for the very next steps may take: so those can go on.
_SPARE, _NEXT = 2, 4


class Instruction(Enum):
    """What a step is."""

    ADDRESS = "an address"
    STORE = "a store"
    LOAD = "a load"
    BOUND = "a minimum or a maximum"
    PRODUCT = "a multiply-add"


# Cycles until a value is there, and how many start in a cycle.
_CYCLES = {
    Instruction.ADDRESS: 3,
    Instruction.STORE: 1,
    Instruction.LOAD: 3,
    Instruction.BOUND: 4,
    Instruction.PRODUCT: 4,
}
_AT_ONCE = {
    Instruction.ADDRESS: 2,
    Instruction.STORE: 1,
    Instruction.LOAD: 1,
    Instruction.BOUND: 1,
    Instruction.PRODUCT: 2,
}


@dataclass(frozen=True)
class Step:
    """An instruction of a tile.

    Attributes:
        instruction: what it is.
        reads: values of steps.
        writes: a value that no other step writes. If it is no address it takes a register until its last reader.
    """

    instruction: Instruction
    reads: tuple[Hashable, ...]
    writes: Hashable = None


def in_order(steps: Sequence[Step], registers: int) -> list[int] | None:
    """The numbers of steps, each behind those whose values it reads.

    Args:
        steps: each behind those whose values it reads.
        registers: that the values of steps may take at once.

    Returns:
        None if these registers are too few.
    """
    core = _Core(steps, registers)
    order, waiting, idle = [], list(range(len(steps))), 0
    while waiting and idle <= max(_CYCLES.values()):
        started = core.start(waiting)
        # A value that is there sooner first: behind another that starts in the same cycle it would wait.
        order += sorted(started, key=lambda number: _CYCLES[steps[number].instruction])
        for number in started:
            waiting.remove(number)
        idle = 0 if started else idle + 1
    return None if waiting else order


class _Core:
    """What has started so far, and what is in registers."""

    def __init__(self, steps: Sequence[Step], registers: int) -> None:
        self._steps, self._free, self._cycle = steps, registers, 0
        self._readers = Counter(value for step in steps for value in step.reads)
        self._addresses = {step.writes for step in steps if step.instruction is Instruction.ADDRESS}
        self._there: dict[Hashable, int] = {}

    def start(self, waiting: Sequence[int]) -> list[int]:
        """Which of the steps that wait start in the next cycle."""
        started: list[int] = []
        of_kind: Counter[Instruction] = Counter()
        soon = list(enumerate(waiting[:_LOOKED_AT]))
        due = [(position, number) for position, number in soon[:_DUE] if self._is_load(number)]
        others = [(position, number) for position, number in soon if position >= _DUE or not self._is_load(number)]
        for position, number in [*due, *others]:
            step = self._steps[number]
            kind = step.instruction
            if len(started) == _STARTED or of_kind[kind] == _AT_ONCE[kind] or not self._can_start(step, position):
                continue
            started.append(number)
            of_kind[kind] += 1
            self._free += self._freed(step)
            self._readers.subtract(step.reads)
            self._there[step.writes] = self._cycle + _CYCLES[kind]
        self._cycle += 1
        return started

    def _is_load(self, number: int) -> bool:
        return self._steps[number].instruction is Instruction.LOAD

    def _can_start(self, step: Step, position: int) -> bool:
        if any(self._there.get(value, self._cycle + 1) > self._cycle for value in step.reads):
            return False
        if step.instruction is Instruction.ADDRESS:
            return True
        if step.reads and step.instruction is not Instruction.LOAD:
            return self._free + self._freed(step) >= 0
        return position <= (_AHEAD if self._free > _SPARE else _NEXT) and self._free + self._freed(step) >= 0

    def _freed(self, step: Step) -> int:
        """Registers that are free again behind it."""
        read = sum(self._readers[value] == 1 and value not in self._addresses for value in step.reads)
        return read - (step.writes is not None and step.writes not in self._addresses)
