"""The order of a tile's instructions for a core that takes them as they come."""

from collections.abc import Sequence

import pytest

from tvm_passes.relax.loops.in_order_core import Instruction, Step, in_order


def sums_of_products(sums: int, products: int) -> list[Step]:
    """Of data, each of which is a load and a part of all sums, with a bound and a place of its own."""
    steps = [Step(Instruction.LOAD, (), ("sum", number, 0)) for number in range(sums)]
    for place in range(products):
        steps.append(Step(Instruction.LOAD, (), ("data", place)))
        for number in range(sums):
            read = ("sum", number, place), ("data", place)
            steps.append(Step(Instruction.PRODUCT, read, ("sum", number, place + 1)))
    for number in range(sums):
        steps.append(Step(Instruction.ADDRESS, (("place", number - 1),) if number else (), ("place", number)))
        steps.append(Step(Instruction.BOUND, (("sum", number, products),), ("result", number)))
        steps.append(Step(Instruction.STORE, (("result", number), ("place", number))))
    return steps


def most_in_registers(steps: Sequence[Step], order: Sequence[int]) -> int:
    """Values that are there at once and still have a reader."""
    most, there = 0, set()
    for position, number in enumerate(order):
        there.add(steps[number].writes)
        read = {value for later in order[position + 1 :] for value in steps[later].reads}
        there &= read
        most = max(most, sum(value[0] != "place" for value in there))
    return most


@pytest.mark.parametrize("registers", [10, 12, 24])
def test_every_step_is_behind_what_it_reads_and_registers_are_enough(registers: int) -> None:
    steps = sums_of_products(8, 9)
    order = in_order(steps, registers)
    assert order is not None and sorted(order) == list(range(len(steps)))
    places = {steps[number].writes: position for position, number in enumerate(order)}
    for position, number in enumerate(order):
        assert all(places[value] < position for value in steps[number].reads)
    assert most_in_registers(steps, order) <= registers


def test_no_order_is_made_up_where_registers_are_too_few() -> None:
    assert in_order(sums_of_products(8, 9), 8) is None


def test_loads_are_between_products_and_long_before_theirs() -> None:
    """A value is there three cycles after its load, in which up to six other instructions start."""
    steps = sums_of_products(8, 9)
    order = in_order(steps, 24)
    assert order is not None
    for place in range(1, 9):
        load = steps.index(Step(Instruction.LOAD, (), ("data", place)))
        first = next(number for number in order if ("data", place) in steps[number].reads)
        between = order[order.index(load) + 1 : order.index(first)]
        assert len(between) >= 4 and any(steps[number].instruction is Instruction.PRODUCT for number in between)


def test_what_waits_for_nothing_starts_while_others_wait() -> None:
    """One sum alone would wait four cycles for each product."""
    one = sums_of_products(1, 4)
    other = [
        Step(step.instruction, tuple(("other", value) for value in step.reads), step.writes and ("other", step.writes))
        for step in one
    ]
    order = in_order([*one, *other], 24)
    assert order is not None
    kinds = [number < len(one) for number in order if one[number % len(one)].instruction is Instruction.PRODUCT]
    assert kinds != sorted(kinds, reverse=True)
