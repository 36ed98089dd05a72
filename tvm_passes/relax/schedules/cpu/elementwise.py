"""Blocks without reduction: maps, padding, transposes."""

import math

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx.analysis import undefined_vars

from tvm_passes.relax.schedules.base.blocks import extent, extents, largest_divisor
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit


def schedule_elementwise(schedule: Schedule, block: SBlockRV, unit: VectorUnit) -> None:
    """Runs a block without reduction in parallel and in vectors: maps, padding, concatenation, transposes.

    A transpose writes short vectors and otherwise follows the order in which its input lies in memory, so that every
    cache line that it touches is used up while it is there.
    """
    loops = schedule.get_loops(block)
    total = math.prod(extents(schedule, block))
    order = _reading_order(schedule, block)
    last = len(loops) - 1
    width = largest_divisor(extent(schedule, loops[last]), 2 * unit.lanes(widest_type(schedule, block)))
    rest, vector = schedule.split(loops[last], [None, width])
    if order and order[-1] != last and extent(schedule, loops[order[-1]]) > 1:
        others = [loops[axis] for axis in order if axis != last]
        outer = [loops[axis] for axis in range(last) if axis not in order] + [rest, *others]
    else:
        outer = [*loops[:last], rest]
    schedule.reorder(*outer, vector)
    if width > 1:
        schedule.vectorize(vector)
    # A small tensor is done before a second thread has woken up. The innermost loop stays apart where the others give
    # enough tasks: fused with them it would cost divisions in every step.
    if total >= 8192:
        count, tasks = 0, 1
        while count < len(outer) - 1 and tasks < 32:
            tasks *= extent(schedule, outer[count])
            count += 1
        if tasks < 32:
            count = len(outer)
        schedule.parallel(schedule.fuse(*outer[:count]))


def _reading_order(schedule: Schedule, block: SBlockRV) -> list[int]:
    """The positions of the block's axes in the order in which they index the input that most of them index."""
    statement = schedule.get(block)
    axes = [axis.var for axis in statement.iter_vars]
    longest: list[int] = []
    for read in statement.reads:
        order: list[int] = []
        for index in read.region:
            used = undefined_vars(index.min, [])
            order += [
                position
                for position, axis in enumerate(axes)
                if position not in order and any(axis.same_as(variable) for variable in used)
            ]
        if len(order) > len(longest):
            longest = order
    return longest
