"""Dense layers: [N, I] × [I, O], the weight with its outputs last as `permute_dims` of PyTorch's [O, I] gives it.

With few rows, which `MatrixProduct` leaves, the weight is read once, at the speed of memory. So a task owns a band of
outputs, keeps their sums in the first-level cache, and reads its part of the weight a few rows at a time for all N. A
core that multiplies by lanes does so for several vectors of sums, which are in registers meanwhile.
"""

import itertools
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.target import Target

from tvm_passes.relax.loops.neon_moves import move_registers
from tvm_passes.relax.loops.prefetch import ask_ahead
from tvm_passes.relax.schedules.base.blocks import (
    FusedOperator,
    extent,
    extents,
    largest_divisor,
    widest_vector,
)
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.matrix_product_match import match_matrix_product
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.lanes import apart, read_in_vectors
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit

# Bytes of a row of a band's sums, and how many inputs are read at a time. `MatrixProduct` has taken what has 16 rows or
# more: sums are less than 32 KiB by default, a first-level cache. Tried on a Zen 4; no benchmark measures dense layers
# alone, `ksm-hw profile` does.
_BAND_BYTES, _DEPTHS = (2048, 1024, 512, 256, 4096), (8, 4, 16, 2)
# Of a core that multiplies by lanes: vectors of sums that are held in registers together, the best first (1000 outputs
# have no 8, and 5 wait for one another), and what is read at a time: sums are loaded and stored once for all of these.
_TOGETHER, _DEPTHS_BY_LANE = (8, 10, 7, 6, 5, 4, 3, 2, 1), (32, 16, 8, 4, 2)


@dataclass(frozen=True)
class Band:
    """One way to compute a dense layer: the outputs of a task, and how many inputs it reads at a time."""

    outputs: int
    inputs: int


class Dense(DesignSpaceRule[FusedOperator, Band]):
    """Matches a matrix product [N, I] × [I, O] with elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the product, what follows it fused."""
        return match_matrix_product(func, target)

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Band]:
        """The `bands` of the product's shape."""
        _batch, width, inputs = extents(schedule, operator.reduction)
        return bands(width, inputs, widest_type(schedule, operator.reduction), vector_unit(target))

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Band, target: Target) -> None:
        """Computes band by band."""
        _compute_bands(schedule, operator, way, vector_unit(target))


def bands(width: int, inputs: int, dtype: str, unit: VectorUnit) -> list[Band]:
    """The ways to compute a dense layer that are worth a measurement, the likely fastest first."""
    outputs = [_outputs(width, limit // value_bytes(dtype), unit, dtype) for limit in _BAND_BYTES]
    limits = _DEPTHS_BY_LANE if unit.by_lane else _DEPTHS
    depths = [largest_divisor(inputs, limit) for limit in limits]
    return list(dict.fromkeys(Band(*band) for band in itertools.product(outputs, depths)))


def _outputs(width: int, most: int, unit: VectorUnit, dtype: str) -> int:
    """Of a band: the most that divide the width; by lanes of those whose vectors are widest, and best held together."""
    if not unit.by_lane:
        return largest_divisor(width, most)
    lanes = unit.lanes(dtype)

    def worth(outputs: int) -> tuple[int, int, int]:
        vector = widest_vector(outputs, lanes)
        return vector, -_TOGETHER.index(_together(outputs // vector)), outputs

    return max((one for one in range(1, min(width, most) + 1) if width % one == 0), key=worth)


def _together(vectors: int) -> int:
    """How many of a band's vectors of sums are held in registers together."""
    return next(number for number in _TOGETHER if vectors % number == 0)


def _compute_bands(schedule: Schedule, operator: FusedOperator, size: Band, unit: VectorUnit) -> None:
    dtype = widest_type(schedule, operator.reduction)
    lanes = unit.lanes(dtype)
    inputs = apart(schedule, operator.reduction) if unit.by_lane else None
    row, outputs, reduction = schedule.get_loops(operator.reduction)
    bands, band = schedule.split(outputs, [None, size.outputs])
    vectors, vector = schedule.split(band, [None, widest_vector(size.outputs, lanes)])
    outer, inner = schedule.split(reduction, [None, size.inputs])
    several: list[LoopRV] = []
    if unit.by_lane:
        vectors, *several = schedule.split(vectors, [None, _together(extent(schedule, vectors))])
    schedule.reorder(bands, outer, row, vectors, inner, *several, vector)
    schedule.reverse_compute_at(operator.output, bands, preserve_unit_loops=True)
    schedule.parallel(bands)
    if inputs is not None:
        move_registers(schedule, [outer, row, vectors])
        read_in_vectors(schedule, inputs, row, 3)
    for loop in (inner, *several):
        schedule.unroll(loop)
    schedule.vectorize(vector)
    *_, output_band = schedule.get_loops(operator.output)
    _, output_vector = schedule.split(output_band, [None, widest_vector(extent(schedule, output_band), lanes)])
    schedule.vectorize(output_vector)
    schedule.decompose_reduction(operator.reduction, outer)
    if unit.has_spare_slots:
        ask_ahead(schedule, inner, axis=0, distance=size.inputs)
