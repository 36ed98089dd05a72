"""Dense layers: [N, I] × [I, O], the weight with its outputs last as `permute_dims` of PyTorch's [O, I] gives it.

With few rows the weight is read once, at the speed of memory. So a task owns a band of outputs, keeps their sums in the
first-level cache, and reads its part of the weight a few rows at a time for all N.
"""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import (
    extent,
    extents,
    fused_operator,
    largest_divisor,
    static_schedule,
    widest_vector,
)
from tvm_passes.relax.schedules.vector_unit import vector_unit


class Dense(ScheduleRule):
    """Matches a matrix product [N, I] × [I, O] with elementwise operators behind it."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it is no such product of a known shape."""
        schedule = static_schedule(func, target, "SSR")
        if schedule is None:
            return None
        operator = fused_operator(schedule)
        if operator is None or operator.producers or operator.followers:
            return None
        if not _is_matrix_product(schedule, operator.reduction):
            return None
        lanes = vector_unit(target).lanes
        batch, width, inputs = extents(schedule, operator.reduction)
        rows, outputs, reduction = schedule.get_loops(operator.reduction)
        row_tiles, row = schedule.split(rows, [None, largest_divisor(batch, 16)])
        bands, band = schedule.split(outputs, [None, largest_divisor(width, 512)])
        vectors, vector = schedule.split(band, [None, widest_vector(extent(schedule, band), lanes)])
        outer, inner = schedule.split(reduction, [None, largest_divisor(inputs, 8)])
        schedule.reorder(row_tiles, bands, outer, row, vectors, inner, vector)
        task = schedule.fuse(row_tiles, bands)
        schedule.reverse_compute_at(operator.output, task, preserve_unit_loops=True)
        schedule.parallel(task)
        schedule.unroll(inner)
        schedule.vectorize(vector)
        *_, output_band = schedule.get_loops(operator.output)
        _, output_vector = schedule.split(output_band, [None, widest_vector(extent(schedule, output_band), lanes)])
        schedule.vectorize(output_vector)
        schedule.decompose_reduction(operator.reduction, outer)
        return schedule


def _is_matrix_product(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block with axes (row, column, depth) reads [row, depth] and [depth, column]."""
    statement = schedule.get(block)
    row, column, depth = (axis.var for axis in statement.iter_vars)
    if len(statement.reads) != 2 or any(len(read.region) != 2 for read in statement.reads):
        return False
    found = [axis.min for read in statement.reads for axis in read.region]
    return all(one.same_as(other) for one, other in zip(found, [row, depth, depth, column], strict=True))
