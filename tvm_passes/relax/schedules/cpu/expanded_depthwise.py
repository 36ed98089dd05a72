"""A 1×1 convolution and the depthwise convolution behind it, one part of the map between them after the other.

A task computes some rows of some channels of the depthwise convolution's result, and before them what it reads of the
1×1 convolution's: the rows at the edges of a task are computed twice, but the larger map is neither written to memory
nor read from it. The depthwise convolution reads its part as it lies (see `depthwise.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION
from tvm_passes.relax.schedules.base.blocks import axis_kinds, blocks_of, extents, static_schedule
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import value_bytes
from tvm_passes.relax.schedules.cpu.depthwise import pixels_in_place
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit

_CONVOLUTION = "SSSSRRR"
_DTYPE = "float32"
# How much of a core's second-level cache a task's part of the map takes, beside what streams through.
_PARTS = (1 / 3, 1 / 6, 2 / 3)
_FEWEST_TASKS = 4
"""Of each core."""
_ROWS = 16
"""Of a tile's channels of the map, which must fit."""


def expansion_pays(expanded: tuple[int, ...], lanes: int, window: int, unit: VectorUnit) -> bool:
    """Whether to keep the map between the two convolutions in the cache: it does not stay there by itself.

    Args:
        expanded: its shape, [N, H, W, E].
        lanes: output channels that the 1×1 convolution's weights have together.
        window: height of the depthwise convolution's kernel.
        unit: of the CPU.
    """
    batch, height, width, channels = expanded
    row_bytes = value_bytes(_DTYPE) * width
    divides = lanes % unit.lanes(_DTYPE) == 0 and channels % lanes == 0
    # A row of the result reads a window's rows, and some way must have a part for them.
    rows = max(_ROWS, window / max(_PARTS))
    fits = rows * row_bytes * lanes <= unit.cache_bytes < height * row_bytes * channels
    return batch == 1 and divides and fits


@dataclass(frozen=True)
class Pair:
    """The two convolutions of a function: the blocks that are left of it when all others are inlined."""

    sums: SBlockRV
    """Of the 1×1 convolution; it accumulates in a buffer that becomes local to a tile."""
    expanded: SBlockRV
    """Writes the map between the two."""
    reduction: SBlockRV
    """Of the depthwise convolution."""
    output: SBlockRV
    """Writes the result."""


@dataclass(frozen=True)
class Expansion:
    """One way to compute the pair.

    Attributes:
        rows, channels: of the result, that a task computes.
        tile_pixels, tile_channels: of the map between, that are held in registers.
        pixels, lanes: of the result, that are held in registers.
    """

    rows: int
    channels: int
    tile_pixels: int
    tile_channels: int
    pixels: int
    lanes: int


class ExpandedDepthwise(DesignSpaceRule[Pair, Expansion]):
    """Matches the functions that `FuseExpansions` makes."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, Pair] | None:
        """A schedule of the pair, all else inlined."""
        schedule = static_schedule(func, target)
        pair = _pair(schedule) if schedule is not None else None
        return None if schedule is None or pair is None else (schedule, pair)

    def ways(self, schedule: Schedule, operator: Pair, target: Target) -> Iterator[Expansion]:
        """Those whose part of the map fits into the cache, the largest part that leaves every core tasks first."""
        unit = vector_unit(target)
        _, height, width, channels, window, *_ = extents(schedule, operator.reduction)
        _, between, across, *_ = extents(schedule, operator.expanded)
        stride, tile_channels = between // height, int(schedule.get(operator.sums).annotations[ANNOTATION])
        vectors = tile_channels // unit.lanes(_DTYPE)
        tiles = [number for number in range(1, 15) if across % number == 0]
        fitting = [number for number in tiles if number * vectors + vectors + 1 <= unit.registers] or [1]
        blocks = [count for count in range(tile_channels, channels + 1, tile_channels) if channels % count == 0]
        for part in _PARTS:
            for block in blocks:
                row_bytes = value_bytes(_DTYPE) * across * block
                tasks = _FEWEST_TASKS * unit.cores * block // channels
                near = [
                    rows
                    for rows in range(1, height + 1)
                    if height % rows == 0 and (rows * stride + window - stride) * row_bytes <= part * unit.cache_bytes
                ]
                enough = [rows for rows in near if height // rows >= tasks]
                rows = (enough or near[:1])[-1:]
                for pixels in pixels_in_place(width, window) if rows else ():
                    for tile in reversed(fitting[-2:]):
                        yield Expansion(rows[0], block, tile, tile_channels, pixels, unit.lanes(_DTYPE))

    def apply_way(self, schedule: Schedule, operator: Pair, way: Expansion, target: Target) -> None:
        """Computes part by part."""
        _share(schedule, operator, way)
        _tile(schedule, operator, way)


def _pair(schedule: Schedule) -> Pair | None:
    blocks = blocks_of(schedule)
    places = [index for index, block in enumerate(blocks) if axis_kinds(schedule, block) == _CONVOLUTION]
    kinds = [axis_kinds(schedule, block) for block in blocks]
    if len(places) != 2 or sum(set(kind) != {"S"} for kind in kinds) != 2:
        return None
    first, second = places
    shape, depth = extents(schedule, blocks[first])[:4], extents(schedule, blocks[second])[-1]
    maps = [block for block in blocks[first + 1 : second] if extents(schedule, block) == shape]
    if ANNOTATION not in schedule.get(blocks[first]).annotations or (depth, first) != (1, 0) or not maps:
        return None
    # What else there is before the second one is padding.
    *inlined, expanded = maps
    output = blocks[-1]
    for block in (*inlined, *blocks[1 + len(maps) : second], *blocks[second + 1 : -1]):
        schedule.compute_inline(block)
    for reduction in (blocks[first], blocks[second]):
        schedule.set_scope(reduction, 0, "local")
    return Pair(blocks[first], expanded, blocks[second], output)


def _share(schedule: Schedule, pair: Pair, way: Expansion) -> None:
    """Makes tasks of the depthwise convolution, and computes in each what it reads."""
    n, y, x, o, ky, kx, i = schedule.get_loops(pair.reduction)
    parts, row = schedule.split(y, [None, way.rows])
    outer_pixels, inner_pixels = schedule.split(x, [None, way.pixels])
    blocks, vectors, vector = schedule.split(o, [None, way.channels // way.lanes, way.lanes])
    schedule.reorder(n, parts, blocks, row, outer_pixels, vectors, i, ky, kx, inner_pixels, vector)
    task = schedule.fuse(n, parts, blocks)
    schedule.reverse_compute_at(pair.output, vectors, preserve_unit_loops=True)
    schedule.compute_at(pair.expanded, task, preserve_unit_loops=True)
    schedule.parallel(task)
    for loop in (vector, schedule.get_loops(pair.output)[-1]):
        schedule.vectorize(loop)
    for loop in (inner_pixels, kx):
        schedule.unroll(loop)
    schedule.decompose_reduction(pair.reduction, i)


def _tile(schedule: Schedule, pair: Pair, way: Expansion) -> None:
    """Computes the 1×1 convolution in tiles, which end with a row."""
    x, o = schedule.get_loops(pair.expanded)[-2:]
    outer_pixels, inner_pixels = schedule.split(x, [None, way.tile_pixels])
    blocks, inner_channels = schedule.split(o, [None, way.tile_channels])
    schedule.reorder(outer_pixels, blocks, inner_pixels, inner_channels)
    schedule.compute_at(pair.sums, blocks, preserve_unit_loops=True)
    *_, pixels, channels, ky, kx, i = schedule.get_loops(pair.sums)
    schedule.reorder(ky, kx, i, pixels, channels)
    for block in (pair.sums, pair.expanded):
        *_, pixels, channels = schedule.get_loops(block)
        vectors, vector = schedule.split(channels, [None, way.lanes])
        schedule.vectorize(vector)
        for loop in (vectors, pixels):
            schedule.unroll(loop)
    schedule.decompose_reduction(pair.sums, ky)
