"""The innermost loops of machine code, where the time of an operator goes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ksm_hw.toolchains.disassembly import Instruction

# Multiply-adds of x86-64, of floats and of integers, and of arm64: scalars, vectors, dot products and matrices.
_MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)\w+|vpdp\w+|vpmadd\w+|fn?m(add|sub)|[fsu]?ml[as]l?2?|(us?|s)dot|\w*mmla")


@dataclass(frozen=True)
class Loop:
    """A loop that has no other inside it.

    Attributes:
        instructions: from the one that the last, a branch, leads back to.
        multiply_adds: how many of them are multiply-adds.
    """

    instructions: tuple[Instruction, ...]
    multiply_adds: int


def innermost_loops(function: Sequence[Instruction]) -> list[Loop]:
    """The innermost loops of a function, those with most multiply-adds first, else in the order of the code.

    A loop is what lies between a branch under a condition and the instruction before it that it leads back to.
    """
    places = {instruction.address: place for place, instruction in enumerate(function)}
    spans = []
    for last, instruction in enumerate(function):
        first = None if instruction.branches_to is None else places.get(instruction.branches_to)
        if first is not None and first <= last:
            spans.append((first, last))
    # Spans are in the order of their ends: one that holds another holds the nearest before it that starts behind it.
    innermost = [
        (first, last)
        for place, (first, last) in enumerate(spans)
        if not any(first <= other for other, _ in spans[:place])
    ]
    loops = [tuple(function[first : last + 1]) for first, last in innermost]
    return sorted((Loop(loop, sum(map(_multiplies, loop))) for loop in loops), key=lambda loop: -loop.multiply_adds)


def _multiplies(instruction: Instruction) -> bool:
    return _MULTIPLY_ADD.fullmatch(instruction.mnemonic) is not None
