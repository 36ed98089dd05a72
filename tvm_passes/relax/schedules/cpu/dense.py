"""Dense layers: [N, I] × [I, O], the weight with its outputs last as `permute_dims` of PyTorch's [O, I] gives it.

With few rows the weight is read once, at the speed of memory. So a task owns a band of outputs, keeps their sums in the
first-level cache, and reads its part of the weight a few rows at a time for all N.
"""

import itertools
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.loops.prefetch import ask_ahead
from tvm_passes.relax.schedules.base.blocks import (
    FusedOperator,
    extent,
    extents,
    largest_divisor,
    match_reduction,
    widest_vector,
)
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import is_modelled, value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

# Bytes of a row of a band's sums, how many inputs are read at a time, and rows whose sums a task keeps: by default 32
# KiB at most, a first-level cache. Tried on a Zen 4; no benchmark measures dense layers alone, `ksm-hw profile` does.
_BAND_BYTES, _DEPTHS, _ROWS = (2048, 1024, 512, 256, 4096), (8, 4, 16, 2), 16


@dataclass(frozen=True)
class Band:
    """One way to compute a dense layer: the outputs of a task, and how many inputs it reads at a time."""

    outputs: int
    inputs: int


class Dense(DesignSpaceRule[FusedOperator, Band]):
    """Matches a matrix product [N, I] × [I, O] with elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the product, what follows it fused."""
        matched = match_reduction(func, target, "SSR")
        if matched is None:
            return None
        schedule, operator = matched
        if operator.producers or operator.followers or not is_modelled(schedule, operator.reduction):
            return None
        return matched if _is_matrix_product(schedule, operator.reduction) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, _: Target) -> list[Band]:
        """The `bands` of the product's shape."""
        _batch, width, inputs = extents(schedule, operator.reduction)
        return bands(width, inputs, widest_type(schedule, operator.reduction))

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Band, target: Target) -> None:
        """Computes band by band."""
        _compute_bands(schedule, operator, way, vector_unit(target).lanes(widest_type(schedule, operator.reduction)))


def bands(width: int, inputs: int, dtype: str) -> list[Band]:
    """The ways to compute a dense layer that are worth a measurement, the likely fastest first."""
    outputs = [largest_divisor(width, limit // value_bytes(dtype)) for limit in _BAND_BYTES]
    depths = [largest_divisor(inputs, limit) for limit in _DEPTHS]
    return list(dict.fromkeys(Band(*band) for band in itertools.product(outputs, depths)))


def _compute_bands(schedule: Schedule, operator: FusedOperator, size: Band, lanes: int) -> None:
    batch, *_ = extents(schedule, operator.reduction)
    rows, outputs, reduction = schedule.get_loops(operator.reduction)
    row_tiles, row = schedule.split(rows, [None, largest_divisor(batch, _ROWS)])
    bands, band = schedule.split(outputs, [None, size.outputs])
    vectors, vector = schedule.split(band, [None, widest_vector(size.outputs, lanes)])
    outer, inner = schedule.split(reduction, [None, size.inputs])
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
    ask_ahead(schedule, inner, axis=0, distance=size.inputs)


def _is_matrix_product(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block with axes (row, column, depth) reads [row, depth] and [depth, column]."""
    statement = schedule.get(block)
    row, column, depth = (axis.var for axis in statement.iter_vars)
    if len(statement.reads) != 2 or any(len(read.region) != 2 for read in statement.reads):
        return False
    found = [axis.min for read in statement.reads for axis in read.region]
    return all(one.same_as(other) for one, other in zip(found, [row, depth, depth, column], strict=True))
