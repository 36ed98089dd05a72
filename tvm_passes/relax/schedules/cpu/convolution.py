"""Convolutions in NHWC with HWIO or packed weights: direct, strided, dilated, grouped, and 1×1.

A tile of output pixels × output channels stays in vector registers while the whole reduction runs: every step loads the
weights of the tile's channels once and broadcasts one input value a pixel. This is the tiling of a matrix product in
which a row is an output pixel and a column an output channel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import TensorRegion
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION
from tvm_passes.relax.loops.prefetch import ask_ahead
from tvm_passes.relax.schedules.base.blocks import (
    FusedOperator,
    extents,
    fused_operator,
    schedule_elementwise,
    smallest_divisor,
    static_schedule,
    widest_vector,
)
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit

# Bytes that stay in a core's first-level cache, and in its second-level cache, beside what streams through.
_NEAR, _NEARBY = 16 << 10, 144 << 10
# Tiles of one block of weights that are few, and bytes of such a block that fit beside the one in use, as measured.
_FEW_TILES, _ASKED = 16, 80 << 10
# The speed of a convolution that reads its map from far for every tile of channels, by one that need not.
_FAR = 0.9


@dataclass(frozen=True)
class Shape:
    """What matters of a convolution's shape.

    Attributes:
        pixels: of the output, of all images.
        channels: of the output, of all groups.
        depth: products that are summed for each value of the output.
        pixel_bytes: of the input, for each pixel of the output.
    """

    pixels: int
    channels: int
    depth: int
    pixel_bytes: int


@dataclass(frozen=True)
class Tiling:
    """One way to compute a convolution.

    Attributes:
        pixels, channels: of a tile of the output, which is held in registers.
        cuts: into how many tasks the tiles of pixels are shared out; a task computes one tile of channels.
        copied: a task copies its weights together first.
        pixels_first: a core computes all channels of its part of the map, instead of all of the map for its channels.
    """

    pixels: int
    channels: int
    cuts: int
    copied: bool
    pixels_first: bool = False


class Convolution(DesignSpaceRule):
    """Matches one NHWC convolution, with or without padding in front and elementwise operators behind it."""

    def candidates(self, func: tirx.PrimFunc, target: Target) -> Iterator[Schedule]:
        """The convolution with each of `tilings`."""
        matched = _match(func, target)
        if matched is None:
            return
        unit = vector_unit(target)
        statement = matched[0].get(matched[1].reduction)
        n, y, x, channels, *window, inputs = extents(matched[0], matched[1].reduction)
        data = [int(extent) for extent in statement.reads[0].source.shape]
        depth, pixels = math.prod(window) * inputs, n * y * x
        shape = Shape(pixels, channels, depth, 4 * min(math.prod(data) // pixels, depth))
        lanes = statement.annotations.get(ANNOTATION)
        for tiling in tilings(shape, data[3] // inputs, unit, None if lanes is None else int(lanes)):
            # Each candidate is made from a schedule of its own.
            schedule, operator = _match(func, target) or matched
            schedule_surroundings(schedule, operator, unit)
            _flatten_pixels(schedule, operator)
            _tile(schedule, operator, tiling, unit)
            yield schedule


def _match(func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
    schedule = static_schedule(func, target, "SSSSRRR")
    operator = fused_operator(schedule) if schedule is not None else None
    if schedule is None or operator is None or not is_convolution(schedule, operator.reduction):
        return None
    return schedule, operator


def is_convolution(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block with axes (n, y, x, o, ky, kx, i) writes at [n, y, x, o] and reads weights at [ky, kx, i, o].

    Or it is marked as one whose weights are packed.
    """
    statement = schedule.get(block)
    n, y, x, o, ky, kx, i = (axis.var for axis in statement.iter_vars)

    def reads_or_writes(region: TensorRegion, wanted: list[tirx.Var]) -> bool:
        found = [axis.min for axis in region.region]
        return len(found) == len(wanted) and all(one.same_as(other) for one, other in zip(found, wanted, strict=True))

    return (
        len(statement.reads) == 2
        and reads_or_writes(statement.writes[0], [n, y, x, o])
        and (ANNOTATION in statement.annotations or reads_or_writes(statement.reads[1], [ky, kx, i, o]))
    )


def schedule_surroundings(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> None:
    """Schedules what lies around the tiles.

    Real padding becomes a loop of its own, so that the reduction has no branch; a mere copy disappears.
    """
    for block in operator.followers:
        schedule_elementwise(schedule, block, unit.lanes)
    for block in operator.producers:
        statement = schedule.get(block)
        source, padded = statement.reads[0].source.shape, statement.writes[0].source.shape
        if all(int(one) == int(other) for one, other in zip(source, padded, strict=True)):
            schedule.compute_inline(block)
        else:
            schedule_elementwise(schedule, block, unit.lanes)


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


def _tile(schedule: Schedule, operator: FusedOperator, tiling: Tiling, unit: VectorUnit) -> None:
    pixels, channels, *reduction = schedule.get_loops(operator.reduction)
    weights_come_late = _weights_come_late(schedule, operator.reduction, tiling)
    channel_tiles, inner_channels = schedule.split(channels, [None, tiling.channels])
    pixel_tiles, inner_pixels = schedule.split(pixels, [None, tiling.pixels])
    cut, tile = schedule.split(pixel_tiles, [tiling.cuts, None])
    order = [cut, channel_tiles] if tiling.pixels_first else [channel_tiles, cut]
    schedule.reorder(*order, tile, *reduction, inner_pixels, inner_channels)
    task = schedule.fuse(*order)
    schedule.reverse_compute_at(operator.output, tile, preserve_unit_loops=True)
    if tiling.copied:
        # In HWIO the weights of a channel tile lie a power of two apart and evict each other from the cache: copy them
        # together once a task.
        packed = schedule.cache_read(operator.reduction, 1, "global")
        schedule.compute_at(packed, task, preserve_unit_loops=True)
        schedule.vectorize(schedule.get_loops(packed)[-1])
    schedule.parallel(task)
    # Splits off the last tile, if the tiles run over the end, so that the others need no bounds check.
    schedule.annotate(tile, "pragma_loop_partition_hint", True)
    lanes = widest_vector(tiling.channels, unit.lanes)
    for block in (operator.reduction, operator.output):
        *_, pixel_loop, channel_loop = schedule.get_loops(block)
        vectors, vector = schedule.split(channel_loop, [None, lanes])
        schedule.vectorize(vector)
        # Everything that touches the accumulators is unrolled, or LLVM leaves them in memory.
        schedule.unroll(vectors)
        schedule.unroll(pixel_loop)
    schedule.decompose_reduction(operator.reduction, reduction[0])
    if weights_come_late:
        ask_ahead(schedule, reduction[-1], axis=0, distance=1)


def _weights_come_late(schedule: Schedule, reduction: SBlockRV, tiling: Tiling) -> bool:
    """Whether it pays to ask for the packed weights of the next tile of channels while this one is computed."""
    pixels, channels, *depth = extents(schedule, reduction)
    packed = ANNOTATION in schedule.get(reduction).annotations
    weight_bytes = 4 * math.prod(depth) * channels
    block_bytes = weight_bytes // channels * tiling.channels
    return packed and weight_bytes > _NEARBY and asking_pays(-(-pixels // tiling.pixels), block_bytes)


def asking_pays(steps: int, weight_bytes: int) -> bool:
    """Whether so many tiles that use the same weights are few enough for the wait for these to weigh much.

    Each of the tiles asks for all of the next weights; these must not push out what is in use.
    """
    return steps <= _FEW_TILES and weight_bytes <= _ASKED


def tilings(shape: Shape, groups: int, unit: VectorUnit, lanes: int | None = None) -> list[Tiling]:
    """The ways to compute a convolution that are worth a measurement, the one that is likely fastest first.

    Args:
        shape: of the convolution.
        groups: of the convolution.
        unit: of the CPU.
        lanes: output channels that packed weights have together; None where they are not packed.
    """

    def by_channels(tile_pixels: int, tile_channels: int, tasks: int, copied: bool) -> Tiling:
        # Maps are cut only as far as it takes for every core to have so many tasks.
        wanted = -(-tasks * unit.cores // (shape.channels // tile_channels))
        return Tiling(tile_pixels, tile_channels, smallest_divisor(-(-shape.pixels // tile_pixels), wanted), copied)

    def by_pixels(tile_pixels: int, tile_channels: int, limit: int) -> Tiling | None:
        # A part of the map stays near while all channels of it are computed.
        tiles = -(-shape.pixels // tile_pixels)
        cuts = smallest_divisor(tiles, -(-shape.pixels * shape.pixel_bytes // limit))
        part = tiles // cuts * tile_pixels * shape.pixel_bytes
        channel_tiles = shape.channels // tile_channels
        enough = cuts > 1 and cuts * channel_tiles >= 4 * unit.cores and limit // 16 <= part <= limit
        return Tiling(tile_pixels, tile_channels, cuts, False, pixels_first=True) if enough else None

    def by_cores(tile_pixels: int, tile_channels: int) -> Tiling | None:
        # Every core keeps to its part of the map: what it reads, the operator before may have left in its cache.
        cuts = unit.cores
        even = cuts > 1 and shape.pixels % (tile_pixels * cuts) == 0
        return Tiling(tile_pixels, tile_channels, cuts, False, pixels_first=True) if even else None

    ranked = ranked_tiles(shape.pixels, shape.channels // groups, shape.depth, unit)
    tiles = [tile for tile, _ in ranked if lanes in (None, tile[1])][:16]
    if lanes is None:
        ways = [
            by_channels(*tile, tasks, copied) for tasks, copied in ((4, True), (1, True), (4, False)) for tile in tiles
        ]
        return list(dict.fromkeys(ways))
    # It pays where the weights stay near from part to part, and the map would not from tile to tile of channels.
    pays = 4 * shape.depth * shape.channels <= 2 * _NEARBY < shape.pixels * shape.pixel_bytes
    # TVM does not always manage to split off a tile that runs over the end of the last part: none such by default.
    whole = [tile for tile in tiles if pays and shape.pixels % tile[0] == 0]
    near = {tile: way for tile in whole if (way := by_pixels(*tile, _NEARBY)) is not None}
    speeds = dict(ranked)
    # Where no tile's map can stay near, all are as far.
    tiles.sort(key=lambda tile: speeds[tile] * (1.0 if tile in near else _FAR), reverse=True)
    found = [near.get(tile, by_channels(*tile, 4, False)) for tile in tiles]
    found += [
        way for limit in (_NEARBY, _NEARBY // 4, 2 * _NEARBY) for tile in tiles if (way := by_pixels(*tile, limit))
    ]
    found += [way for tile in tiles if (way := by_cores(*tile))]
    found += [by_channels(*tile, tasks, False) for tasks in (4, 1, 16) for tile in tiles]
    return list(dict.fromkeys(found))


def ranked_tiles(pixels: int, channels: int, depth: int, unit: VectorUnit) -> list[tuple[tuple[int, int], float]]:
    """How many output pixels × output channels to hold in registers, best first, and what to think of each.

    The channels are a divisor of the axis, because a vector with a bounds check is slow. The best tile does most useful
    multiply-adds a cycle on a core that starts two loads a cycle and takes four cycles to finish a multiply-add. A
    quarter of the registers remains for weights and inputs; LLVM spills accumulators if more are taken.

    Args:
        pixels, channels: of the output.
        depth: products that are summed for each value of it.
        unit: of the CPU.
    """

    def speed(tile_pixels: int, tile_channels: int) -> float:
        lanes = widest_vector(tile_channels, unit.lanes)
        vectors = tile_channels // lanes
        products = tile_pixels * vectors
        weight_bytes = 4 * tile_channels
        # Weights of all steps that do not stay in the first-level cache arrive slower, as measured.
        arriving = weight_bytes / (21 if weight_bytes * depth <= _NEAR else 14.5)
        cycles = max(products / unit.products, (tile_pixels + vectors) / 2, 4, arriving)
        useful = pixels / (-(-pixels // tile_pixels) * tile_pixels)
        # Tiles that fit need no second version of the code for the end of the map.
        return lanes * products / cycles * useful * (1.0 if pixels % tile_pixels == 0 else 0.99) + products / 1000

    candidates = [
        (tile_pixels, tile_channels)
        for tile_channels in range(1, min(channels, 4 * unit.lanes) + 1)
        if channels % tile_channels == 0
        for vectors in [tile_channels // widest_vector(tile_channels, unit.lanes)]
        for tile_pixels in range(1, min(pixels, 14) + 1)
        if tile_pixels == 1 or tile_pixels * vectors <= unit.registers * 3 // 4
    ]
    speeds = {tile: speed(*tile) for tile in candidates}
    return sorted(speeds.items(), key=lambda one: one[1], reverse=True)
