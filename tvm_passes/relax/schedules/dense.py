"""Dense layers: [N, I] × [I, O], the weight with its outputs last as `permute_dims` of PyTorch's [O, I] gives it.

With few rows the weight is read once, at the speed of memory, so each task streams a band of whole weight rows' segments
and keeps its outputs in the first-level cache.
"""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
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
        if target.kind.name != "llvm" or (schedule := static_schedule(func)) is None:
            return None
        operator = fused_operator(schedule, "SSR")
        if operator is None or operator.producers or operator.followers:
            return None
        statement = schedule.get(operator.reduction)
        row, column, depth = (axis.var for axis in statement.iter_vars)
        wanted = [[row, depth], [depth, column]]
        found = [[axis.min for axis in read.region] for read in statement.reads]
        if len(found) != 2 or not all(
            len(indices) == 2 and indices[0].same_as(pair[0]) and indices[1].same_as(pair[1])
            for indices, pair in zip(found, wanted, strict=True)
        ):
            return None
        unit = vector_unit(target)
        _, columns, inputs = extents(schedule, operator.reduction)
        rows, outputs, reduction = schedule.get_loops(operator.reduction)
        width = widest_vector(columns, unit.lanes)
        bands, band = schedule.split(outputs, [None, width * largest_divisor(columns // width, 512 // width)])
        vectors, vector = schedule.split(band, [None, width])
        outer, inner = schedule.split(reduction, [None, largest_divisor(inputs, 8)])
        schedule.reorder(rows, bands, outer, vectors, inner, vector)
        schedule.reverse_compute_at(operator.output, bands, preserve_unit_loops=True)
        schedule.parallel(schedule.fuse(rows, bands))
        schedule.vectorize(vector)
        schedule.unroll(inner)
        output_loop = schedule.get_loops(operator.output)[-1]
        _, output_vector = schedule.split(output_loop, [None, widest_vector(extent(schedule, output_loop), unit.lanes)])
        schedule.vectorize(output_vector)
        init = schedule.decompose_reduction(operator.reduction, outer)
        init_loop = schedule.get_loops(init)[-1]
        schedule.vectorize(init_loop) if False else None
        return schedule
