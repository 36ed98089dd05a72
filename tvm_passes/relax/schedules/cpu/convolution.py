"""Convolutions in NHWC with HWIO or packed weights: direct, strided, dilated, grouped, and 1×1.

A tile of output pixels × output channels stays in vector registers while the whole reduction runs: every step loads the
weights of the tile's channels once and broadcasts one input value a pixel. This is the tiling of a matrix product in
which a row is an output pixel and a column an output channel. Where a CPU multiplies by one value of a register, the
inputs of several steps are loaded at once.
"""

import dataclasses
import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION, OUTPUTS
from tvm_passes.relax.loops.prefetch import ask_ahead
from tvm_passes.relax.loops.unequal_vectors import in_unequal_vectors
from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents
from tvm_passes.relax.schedules.base.convolution_match import input_shape, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.lanes import apart, read_in_vectors, steps_at_once
from tvm_passes.relax.schedules.cpu.tile_model import NEARBY, Shape, Tiling, asking_pays, bytes_apart, tilings
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit, vector_widths


class Convolution(DesignSpaceRule[FusedOperator, Tiling]):
    """Matches one NHWC convolution, with or without padding in front and elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        return match_convolution(func, target)

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Tiling]:
        """The `tilings` of the convolution's shape."""
        n, y, x, channels, *window, inputs = extents(schedule, operator.reduction)
        data = input_shape(schedule, operator)
        depth, pixels = math.prod(window) * inputs, n * y * x
        dtype = widest_type(schedule, operator.reduction)
        pixel_bytes = value_bytes(dtype) * min(math.prod(data) // pixels, depth)
        between = bytes_apart(tuple(window), -(-data[2] // x), data[3], dtype)
        shape = Shape(pixels, channels, depth, pixel_bytes, between, dtype)
        lanes = schedule.get(operator.reduction).annotations.get(ANNOTATION)
        unit = vector_unit(target)
        if _steps_at_once(schedule, operator, unit) == 1:
            unit = dataclasses.replace(unit, by_lane=False)  # Each input is a load of its own.
        # The last tile of filled-up channels has code of its own, and so a place in a loop that is not shared out.
        apart = not _is_filled(schedule, operator)
        return tilings(shape, data[3] // inputs, unit, None if lanes is None else int(lanes), channels_apart=apart)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Tiling, target: Target) -> None:
        """Computes tile by tile."""
        unit = vector_unit(target)
        schedule_surroundings(schedule, operator, unit)
        _flatten_pixels(schedule, operator)
        compute_tiles(schedule, operator, way, unit)


def _is_filled(schedule: Schedule, operator: FusedOperator) -> bool:
    return OUTPUTS in schedule.get(operator.reduction).annotations


def schedule_surroundings(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> None:
    """Schedules what lies around the tiles.

    Real padding becomes a loop of its own, so that the reduction has no branch; a mere copy disappears.
    """
    for block in operator.followers:
        schedule_elementwise(schedule, block, unit)
    for block in operator.producers:
        statement = schedule.get(block)
        source, padded = statement.reads[0].source.shape, statement.writes[0].source.shape
        if all(int(one) == int(other) for one, other in zip(source, padded, strict=True)):
            schedule.compute_inline(block)
        else:
            schedule_elementwise(schedule, block, unit)


def _flatten_pixels(schedule: Schedule, operator: FusedOperator) -> None:
    """Makes one axis of n, y and x in the reduction, its accumulators and the output's loop (not its buffer).

    Tiles may then run over the end of a row, so that small maps, such as 7×7, fill whole tiles as well.
    """
    _, height, width, *_ = extents(schedule, operator.reduction)

    def flat(n: tirx.Var, y: tirx.Var, x: tirx.Var, *rest: tirx.Var) -> list[tirx.Expr]:
        return [(n * height + y) * width + x, *rest]

    schedule.transform_layout(operator.reduction, ("write", 0), lambda n, y, x, o: flat(n, y, x, o))
    schedule.transform_block_layout(operator.reduction, lambda n, y, x, o, ky, kx, i: flat(n, y, x, o, ky, kx, i))
    schedule.transform_block_layout(operator.output, lambda n, y, x, o: flat(n, y, x, o))


def compute_tiles(schedule: Schedule, operator: FusedOperator, tiling: Tiling, unit: VectorUnit) -> None:
    """Computes tile by tile a reduction whose axes are pixels, channels and what is summed."""
    steps = _steps_at_once(schedule, operator, unit)
    inputs = apart(schedule, operator.reduction) if steps > 1 else None
    pixels, channels, *reduction = schedule.get_loops(operator.reduction)
    # A core without a slot for it is left to follow by itself what lies in one row.
    weights_come_late = unit.has_spare_slots and _weights_come_late(schedule, operator.reduction, tiling)
    channel_tiles, inner_channels = schedule.split(channels, [None, tiling.channels])
    pixel_tiles, inner_pixels = schedule.split(pixels, [None, tiling.pixels])
    cut, tile = schedule.split(pixel_tiles, [tiling.cuts, None])
    order = [cut, channel_tiles] if tiling.pixels_first else [channel_tiles, cut]
    if inputs is not None:
        reduction += schedule.split(reduction.pop(), [None, steps])
    schedule.reorder(*order, tile, *reduction, inner_pixels, inner_channels)
    if _is_filled(schedule, operator):
        # Splits off the channels behind which there are filled-up ones.
        schedule.annotate(channel_tiles, "pragma_loop_partition_hint", True)
        task = cut
    else:
        task = schedule.fuse(*order)
    schedule.reverse_compute_at(operator.output, tile, preserve_unit_loops=True)
    if tiling.copied:
        # In HWIO the weights of a channel tile lie a power of two apart and evict each other from the cache: copy them
        # together once a task.
        packed = schedule.cache_read(operator.reduction, 1, "global")
        schedule.compute_at(packed, task, preserve_unit_loops=True)
        schedule.vectorize(schedule.get_loops(packed)[-1])
    if inputs is not None:
        # Those of the loops task and tile, and all of the reduction but the steps.
        read_in_vectors(schedule, inputs, reduction[-2], 1 + len(reduction))
        schedule.unroll(reduction[-1])
    schedule.parallel(task)
    # Splits off the last tile, if the tiles run over the end, so that the others need no bounds check.
    schedule.annotate(tile, "pragma_loop_partition_hint", True)
    widths = vector_widths(tiling.channels, unit, widest_type(schedule, operator.reduction))
    for block in (operator.reduction, operator.output):
        *_, pixel_loop, channel_loop = schedule.get_loops(block)
        # Everything that touches the accumulators is unrolled, or LLVM leaves them in memory.
        if widths[-1] < widths[0]:
            in_unequal_vectors(schedule, channel_loop, widths[0])
        else:
            vectors, vector = schedule.split(channel_loop, [None, widths[0]])
            schedule.vectorize(vector)
            schedule.unroll(vectors)
        schedule.unroll(pixel_loop)
    schedule.decompose_reduction(operator.reduction, reduction[0])
    if weights_come_late:
        ask_ahead(schedule, reduction[-1], axis=0, distance=1)


def _steps_at_once(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> int:
    """Steps whose inputs are read together; 1 where the CPU cannot, or a tile's channels are of several groups."""
    one_group = input_shape(schedule, operator)[-1] == extents(schedule, operator.reduction)[-1]
    return steps_at_once(schedule, operator.reduction, unit) if unit.by_lane and one_group else 1


def _weights_come_late(schedule: Schedule, reduction: SBlockRV, tiling: Tiling) -> bool:
    """Whether it pays to ask for the packed weights of the next tile of channels while this one is computed."""
    pixels, channels, *depth = extents(schedule, reduction)
    packed = ANNOTATION in schedule.get(reduction).annotations
    weight_bytes = value_bytes(widest_type(schedule, reduction)) * math.prod(depth) * channels
    block_bytes = weight_bytes // channels * tiling.channels
    return packed and weight_bytes > NEARBY and asking_pays(-(-pixels // tiling.pixels), block_bytes)
