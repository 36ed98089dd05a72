"""Reductions over the innermost axis and what is made of them: LayerNorm, softmax and norms, one row after the other.

All that is computed of a row is computed while the row is in the first-level cache. The sums and maxima themselves
become vectors in `loops/vector_reductions.py`.
"""

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError
from tvm.target import Target

from tvm_passes.relax.loops.unequal_vectors import in_unequal_vectors
from tvm_passes.relax.loops.vector_reductions import in_partial_results, is_commutative
from tvm_passes.relax.schedules.base.blocks import (
    axis_kinds,
    blocks_of,
    extent,
    extents,
    largest_divisor,
    static_schedule,
)
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit

_PARALLEL_FROM = 8192  # Values: less is done before a second thread has woken up.
_UNROLLED = 16  # Vectors of a row that are written one behind the other, where the last is shorter.


@dataclass(frozen=True)
class _Rows:
    """The blocks of a function that reduces rows.

    Attributes:
        before: maps that depend on no reduction.
        steps: reductions, and what is computed from them and is read by others, in the order of the function.
        result: computes the rows of the result from them, or is the last reduction.
        behind: what follows the result.
    """

    before: list[SBlockRV]
    steps: list[SBlockRV]
    result: SBlockRV
    behind: list[SBlockRV]


class RowReductions(ScheduleRule):
    """Matches functions whose reductions are all over the last axis of rows; their result has such rows again, or is
    what a row of one tensor is reduced to."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it is another."""
        schedule = static_schedule(func, target)
        rows = _rows(schedule) if schedule is not None else None
        if schedule is None or rows is None:
            return None
        try:
            _schedule_rows(schedule, rows, vector_unit(target))
        except ScheduleError:  # A block that is no map after all, or rows that are read in another order.
            return None
        return schedule


def _rows(schedule: Schedule) -> _Rows | None:
    blocks = blocks_of(schedule)
    reductions = [index for index, block in enumerate(blocks) if set(axis_kinds(schedule, block)) != {"S"}]
    if not reductions or not all(_reduces_rows(schedule, blocks[index]) for index in reductions):
        return None
    outer = extents(schedule, blocks[reductions[0]])[:-1]
    if any(extents(schedule, blocks[index])[:-1] != outer for index in reductions):
        return None
    reduced = {schedule.get(blocks[index]).writes[0].source for index in reductions}
    before: list[SBlockRV] = []
    steps: list[SBlockRV] = []
    for index, block in enumerate(blocks):
        statement = schedule.get(block)
        if index not in reductions and not any(read.source in reduced for read in statement.reads):
            before.append(block)
            continue
        reduced.add(statement.writes[0].source)
        if index > reductions[-1] and len(extents(schedule, block)) > len(outer):
            is_row = extents(schedule, block)[:-1] == outer
            return _Rows(before, steps, block, blocks[index + 1 :]) if is_row else None
        steps.append(block)
    # Of several tensors some lie in another order.
    ends = reductions[-1] == len(blocks) - 1 and len(schedule.get(blocks[-1]).reads) == 1
    is_float = widest_type(schedule, blocks[-1]).startswith("float")
    return _Rows(before, steps[:-1], steps[-1], []) if ends and is_float else None


def _reduces_rows(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block reduces the last axis alone, along which it reads memory, to one value."""
    kinds, statement = axis_kinds(schedule, block), schedule.get(block)
    last = statement.iter_vars[-1].var
    along = any(read.region[-1].min.same_as(last) for read in statement.reads)
    reduces = kinds == "S" * (len(kinds) - 1) + "R" and len(kinds) > 1
    return reduces and along and is_commutative(statement)


def _schedule_rows(schedule: Schedule, rows: _Rows, unit: VectorUnit) -> None:
    for block in rows.before:
        schedule.compute_inline(block)
    result, behind = rows.result, rows.behind
    if behind and extents(schedule, behind[-1]) == extents(schedule, result):
        for block in (result, *behind[:-1]):
            schedule.compute_inline(block)
        result, behind = behind[-1], []
    for block in behind[:-1]:
        schedule.compute_inline(block)
    for block in behind[-1:]:
        schedule_elementwise(schedule, block, unit)
    is_large = math.prod(extents(schedule, result)) >= _PARALLEL_FROM
    row = schedule.fuse(*schedule.get_loops(result)[:-1])
    for block in reversed(rows.steps):
        schedule.set_scope(block, 0, "local")
        schedule.compute_at(block, row, preserve_unit_loops=True)
    for block in (*rows.steps, result):
        *_, column = schedule.get_loops(block)
        lanes = unit.lanes(widest_type(schedule, block))
        if axis_kinds(schedule, block)[-1] == "S":
            _in_vectors(schedule, column, lanes)
        elif extent(schedule, column) >= lanes:
            # Two registers, where each has some steps: additions wait for each other.
            in_partial_results(schedule, column, lanes * (2 if extent(schedule, column) >= 4 * lanes else 1))
    if is_large:
        schedule.parallel(row)


def _in_vectors(schedule: Schedule, column: LoopRV, lanes: int) -> None:
    """Computes a row in vectors, the last of which may be shorter."""
    length = extent(schedule, column)
    if lanes < length <= _UNROLLED * lanes and length % lanes:
        in_unequal_vectors(schedule, column, lanes)
        return
    _, vector = schedule.split(column, [None, largest_divisor(length, lanes)])
    schedule.vectorize(vector)
