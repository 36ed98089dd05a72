"""Finding and fusing the blocks of a TIR function: what every rule does before it tiles."""

import re
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError
from tvm.target import Target
from tvm.tirx import IterVar

from tvm_passes.relax.kernels.packed_convolution import OUTPUTS


@dataclass
class FusedOperator:
    """A function that computes one reduction and, element by element, what follows it."""

    producers: list[SBlockRV]
    """Blocks that prepare the reduction's input (padding), in the order of the function."""
    reduction: SBlockRV
    """The reduction; it accumulates in a buffer that becomes local to a tile."""
    output: SBlockRV
    """Reads the accumulators once each and writes the result: elementwise operators of the reduction's shape."""
    followers: list[SBlockRV]
    """What broadcasts the result to a larger shape, such as a squeeze-and-excitation's multiplication: one block."""


def static_schedule(
    func: tirx.PrimFunc, target: Target, reduction: str | None = None, device: str = "cpu"
) -> Schedule | None:
    """A schedule of a function for a class of devices; None if the target is of another, or a shape is not known.

    Args:
        func: a sequence of loop nests with one block each, as TE writes it.
        target: of the function.
        reduction: where given, the axis kinds (see `axis_kinds`) of the one reduction that the function must have, as a
            regular expression. Looked up before a schedule is made, which takes milliseconds.
        device: the class of targets that the schedule is for, `cpu` or `gpu`.
    """
    blocks = _statements(func)
    if device not in target.keys or not blocks:
        return None
    if not all(isinstance(axis.dom.extent, tirx.IntImm) for block in blocks for axis in block.iter_vars):
        return None
    kinds = [_kinds(block) for block in blocks]
    reductions = [kind for kind in kinds if set(kind) != {"S"}]
    if reduction is not None and not (len(reductions) == 1 and re.fullmatch(reduction, reductions[0])):
        return None
    return Schedule(func)


def _statements(func: tirx.PrimFunc) -> list[SBlock]:
    """The blocks of a function in program order; empty if one lies in anything but loops, one an axis."""
    if not isinstance(func.body, SBlockRealize):
        return []
    body = func.body.block.body
    blocks = []
    for nest in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        depth, statement = 0, nest
        while isinstance(statement, tirx.For):
            depth, statement = depth + 1, statement.body
        if not isinstance(statement, SBlockRealize) or len(statement.block.iter_vars) != depth or depth == 0:
            return []
        blocks.append(statement.block)
    return blocks


def blocks_of(schedule: Schedule) -> list[SBlockRV]:
    """The blocks of the function `main` in program order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def axis_kinds(schedule: Schedule, block: SBlockRV) -> str:
    """One letter an axis: S for spatial, R for reduction, O for others, such as `SSSSRRR` for a convolution."""
    return _kinds(schedule.get(block))


def _kinds(block: SBlock) -> str:
    letters = {IterVar.DataPar: "S", IterVar.CommReduce: "R"}
    return "".join(letters.get(axis.iter_type, "O") for axis in block.iter_vars)


def extents(schedule: Schedule, block: SBlockRV) -> list[int]:
    """The extent of every axis of a block."""
    return [int(axis.dom.extent) for axis in schedule.get(block).iter_vars]


def extent(schedule: Schedule, loop: LoopRV) -> int:
    """The extent of a loop."""
    return int(schedule.get(loop).extent)


def match_reduction(
    func: tirx.PrimFunc, target: Target, kinds: str, device: str = "cpu"
) -> tuple[Schedule, FusedOperator] | None:
    """A schedule of a function with one reduction, what follows it fused; None if the function is another.

    Args:
        func, target, device: as `static_schedule`.
        kinds: the reduction's axis kinds, as `static_schedule`.
    """
    schedule = static_schedule(func, target, kinds, device)
    operator = fused_operator(schedule) if schedule is not None else None
    return None if schedule is None or operator is None else (schedule, operator)


def fused_operator(schedule: Schedule) -> FusedOperator | None:
    """Inlines the elementwise blocks behind the only reduction.

    Args:
        schedule: of a function with one reduction; changed only if the answer is not None.

    Returns:
        None if something behind the reduction is neither of the reduction's shape nor follows what is.
    """
    blocks = blocks_of(schedule)
    (position,) = (index for index, block in enumerate(blocks) if set(axis_kinds(schedule, block)) != {"S"})
    producers, reduction, after = blocks[:position], blocks[position], blocks[position + 1 :]
    shape = [int(axis) for axis in schedule.get(reduction).writes[0].source.shape]
    filled_up = schedule.get(reduction).annotations.get(OUTPUTS)
    if filled_up is not None:
        shape[-1] = int(filled_up)  # The block behind crops them.
    same_shape = [block for block in after if extents(schedule, block) == shape]
    followers = after[len(same_shape) :]
    inlined = [*same_shape[:-1], *followers[:-1]]
    if same_shape != after[: len(same_shape)] or any(_writes_result(schedule, block) for block in inlined):
        return None
    for block in inlined:
        schedule.compute_inline(block)
    if same_shape:
        output = same_shape[-1]
        schedule.set_scope(reduction, 0, "local")
    else:
        output = schedule.cache_write(reduction, 0, "local")
    return FusedOperator(producers, reduction, output, followers[-1:])


def inline_maps(schedule: Schedule) -> list[SBlockRV]:
    """Inlines every block without reduction that writes no result of the function; returns the blocks that remain."""
    remaining = []
    for block in blocks_of(schedule):
        is_map = set(axis_kinds(schedule, block)) == {"S"} and not _writes_result(schedule, block)
        if not (is_map and _inlined(schedule, block)):
            remaining.append(block)
    return remaining


def _inlined(schedule: Schedule, block: SBlockRV) -> bool:
    """Inlines a block, unless it is no map after all: an adaptive pool to a larger size has a loop inside its block."""
    try:
        schedule.compute_inline(block)
    except ScheduleError:
        return False
    return True


def _writes_result(schedule: Schedule, block: SBlockRV) -> bool:
    results = schedule.mod["main"].params
    return any(written.source.same_as(result) for written in schedule.get(block).writes for result in results)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that does not exceed the limit."""
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)


def smallest_divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is not less than `least`, or the number itself."""
    return next(divisor for divisor in range(max(1, min(number, least)), number + 1) if number % divisor == 0)


def widest_vector(length: int, limit: int) -> int:
    """The largest divisor of a length that is a power of two, up to the limit: vectors must not run over the end."""
    return next(width for width in (64, 32, 16, 8, 4, 2, 1) if width <= limit and length % width == 0)
