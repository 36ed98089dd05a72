"""Matrix products of many rows, one or a batch of them: [B…, N, I] × [B…, I, O], as attention has, or × [I, O], as
linear layers have whose weights nothing packs.

A tile of rows × outputs stays in vector registers while the whole reduction runs, as a convolution's does: a row is a
pixel and an output a channel. A task copies the part of the second matrix that it multiplies by together first, for its
rows lie far apart. Where vectors do not divide the outputs, these are filled up for the tiles.
"""

import dataclasses
import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import (
    FusedOperator,
    blocks_of,
    extents,
    widest_vector,
)
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.matrix_product_match import match_matrix_product
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.tile_model import Tiling, product_shape, tilings
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit

FEWEST_ROWS, _FEWEST_ROWS_FROM_FAR, _FAR_BYTES = 8, 16, 32 << 20
"""With fewer, a weight is read at the speed of memory whatever registers hold, and so in long rows: see `Dense`.

From memory weights arrive slower than from a cache, and it takes more rows to be worth a copy. By the minima on a Xeon
with AVX-512 and one thread `Dense` takes 1.0 to 2.6 times as long as this with 8 rows and weights to 32 MiB, 0.6 to 0.9
times with 8 rows and 48 to 128 MiB, 0.85 to 0.9 times with 12, 0.9 to 1.2 with 16, and 1.4 to 1.8 with 20.
On arm64, where `Dense` multiplies by lanes and this does not, llvm-mca says of loops with 8 rows that this reaches 57 %
of the peak of a Cortex-A76, 99 of an A72 and 100 of an A55, `Dense` 45, 50 and 88. What boards' memory does to it is
not measured.
"""


@dataclass
class Product:
    """A matrix product in a schedule: what is computed, and what copies the second matrix."""

    operator: FusedOperator
    copy: SBlockRV
    filled: bool
    """Whether the copy has more outputs than the product."""


class MatrixProduct(DesignSpaceRule[Product, Tiling]):
    """Matches [B…, N, I] × [B…, I, O] or [I, O] of many rows N, with elementwise operators behind them."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, Product] | None:
        """A schedule of the product, what follows it fused."""
        matched = match_matrix_product(func, target, batches=True)
        if matched is None:
            return None
        schedule, operator = matched
        dtype = widest_type(schedule, operator.reduction)
        if _has_few_rows(extents(schedule, operator.reduction), dtype):
            return None
        lanes = vector_unit(target).lanes(dtype)
        filled = extents(schedule, operator.reduction)[-2] % lanes > 0
        return schedule, Product(operator, _copied(schedule, operator, lanes), filled)

    def ways(self, schedule: Schedule, product: Product, target: Target) -> list[Tiling]:
        """The `tilings` of a convolution of as many pixels and channels whose tasks copy their weights."""
        *batch, rows, outputs, inputs = extents(schedule, product.operator.reduction)
        dtype, unit = widest_type(schedule, product.operator.reduction), vector_unit(target)
        # Inputs are read one by one, and all vectors are as wide.
        unit = dataclasses.replace(unit, by_lane=False, shorter_last=False)
        shape = product_shape(rows, outputs, inputs, dtype)
        # The last tile of filled-up outputs has code of its own, where a task has all outputs of a product.
        apart = not product.filled or math.prod(batch) < unit.cores
        return [way for way in tilings(shape, 1, unit, channels_apart=apart, batch=math.prod(batch)) if way.copied]

    def apply_way(self, schedule: Schedule, product: Product, way: Tiling, target: Target) -> None:
        """Computes tile by tile."""
        _tile(schedule, product, way, vector_unit(target))


def _has_few_rows(shape: list[int], dtype: str) -> bool:
    """Whether a product of this shape, its axes in the order of the reduction's, is left to other rules."""
    *batch, rows, outputs, inputs = shape
    # No other rule takes batches.
    far = not batch and value_bytes(dtype) * inputs * outputs > _FAR_BYTES
    return rows < (_FEWEST_ROWS_FROM_FAR if far else FEWEST_ROWS)


def _copied(schedule: Schedule, operator: FusedOperator, lanes: int) -> SBlockRV:
    """Makes copying the second matrix a block of its own, whose rows are filled up with zeros to whole vectors."""
    *outer, outputs, _ = extents(schedule, operator.reduction)
    if outputs % lanes == 0:
        return schedule.cache_read(operator.reduction, 1, "global")
    schedule.pad_einsum(operator.reduction, [*(1 for _ in outer), lanes, 1])
    copy, reduction, cropped, _output = blocks_of(schedule)
    schedule.compute_inline(cropped)
    operator.reduction = reduction
    return copy


def _tile(schedule: Schedule, product: Product, tiling: Tiling, unit: VectorUnit) -> None:
    reduction, output = product.operator.reduction, product.operator.output
    *batch, rows, outputs, depth = schedule.get_loops(reduction)
    output_tiles, inner_outputs = schedule.split(outputs, [None, tiling.channels])
    row_tiles, inner_rows = schedule.split(rows, [None, tiling.pixels])
    cut, tile = schedule.split(row_tiles, [tiling.cuts, None])
    order = [cut, output_tiles] if tiling.pixels_first else [output_tiles, cut]
    schedule.reorder(*batch, *order, tile, depth, inner_rows, inner_outputs)
    if tiling.pixels_first:
        # Splits off the outputs behind which there are filled-up ones.
        schedule.annotate(output_tiles, "pragma_loop_partition_hint", True)
        task = schedule.fuse(*batch, cut)
    else:
        task = schedule.fuse(*batch, *order)
    schedule.reverse_compute_at(output, tile, preserve_unit_loops=True)
    schedule.compute_at(product.copy, task, preserve_unit_loops=True)
    lanes = widest_vector(tiling.channels, unit.lanes(widest_type(schedule, reduction)))
    vectors, copied = schedule.split(schedule.get_loops(product.copy)[-1], [None, lanes])
    schedule.vectorize(copied)
    if tiling.pixels_first:
        schedule.annotate(vectors, "pragma_loop_partition_hint", True)
    schedule.parallel(task)
    # Splits off the last tile, if the tiles run over the end, so that the others need no bounds check.
    schedule.annotate(tile, "pragma_loop_partition_hint", True)
    for block in (reduction, output):
        *_, row_loop, output_loop = schedule.get_loops(block)
        vectors, vector = schedule.split(output_loop, [None, lanes])
        schedule.vectorize(vector)
        schedule.unroll(vectors)
        schedule.unroll(row_loop)
    schedule.decompose_reduction(reduction, depth)
