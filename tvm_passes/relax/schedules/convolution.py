"""Convolutions in NHWC with HWIO weights: direct, strided, dilated, grouped, and 1×1.

A tile of output pixels × output channels stays in vector registers while the whole reduction runs: every step loads the
weights of the tile's channels once and broadcasts one input value a pixel.
"""

from tvm import tirx
from tvm.ir import TensorRegion
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target

from tvm_passes.relax.schedules.blocks import (
    FusedOperator,
    extents,
    fused_operator,
    largest_divisor,
    schedule_elementwise,
    static_schedule,
)
from tvm_passes.relax.schedules.vector_unit import VectorUnit, vector_unit


class Convolution(ScheduleRule):
    """Matches one NHWC convolution, with or without padding in front and elementwise operators behind it."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if it is no convolution of a known shape."""
        if target.kind.name != "llvm" or (schedule := static_schedule(func)) is None:
            return None
        operator = fused_operator(schedule, "SSSSRRR")
        if operator is None or not is_convolution(schedule, operator.reduction):
            return None
        unit = vector_unit(target)
        inline_or_schedule_padding(schedule, operator, unit)
        _tile(schedule, operator, unit)
        return schedule


def is_convolution(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block with axes (n, y, x, o, ky, kx, i) reads weights at [ky, kx, i, o] and writes at [n, y, x, o]."""
    statement = schedule.get(block)
    variables = [axis.var for axis in statement.iter_vars]

    def indices(region: TensorRegion) -> list[tirx.Expr]:
        return [axis.min for axis in region.region]

    def same(found: list[tirx.Expr], wanted: list[tirx.Var]) -> bool:
        return len(found) == len(wanted) and all(one.same_as(other) for one, other in zip(found, wanted, strict=True))

    n, y, x, o, ky, kx, i = variables
    return (
        len(statement.reads) == 2
        and same(indices(statement.writes[0]), [n, y, x, o])
        and same(indices(statement.reads[1]), [ky, kx, i, o])
    )


def inline_or_schedule_padding(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> None:
    """Real padding becomes a loop of its own, so that the reduction has no branch; a mere copy disappears."""
    for block in operator.producers:
        statement = schedule.get(block)
        source, padded = statement.reads[0].source.shape, statement.writes[0].source.shape
        if all(int(one) == int(other) for one, other in zip(source, padded, strict=True)):
            schedule.compute_inline(block)
        else:
            schedule_elementwise(schedule, block, unit.lanes)


def _tile(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> None:
    batch, height, width, channels, kernel_height, kernel_width, depth = extents(schedule, operator.reduction)
    n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
    data, weight = schedule.get(operator.reduction).reads
    groups = int(data.source.shape[3]) // depth
    if kernel_height * kernel_width == 1 and [int(axis) for axis in data.source.shape[:3]] == [batch, height, width]:
        # Without a window rows need not be kept apart, and small maps fill whole tiles.
        pixels: LoopRV = schedule.fuse(n, y, x)
        rows: list[LoopRV] = []
        row_length = batch * height * width
    else:
        rows, pixels, row_length = [schedule.fuse(n, y)], x, width
    tile_pixels, tile_channels = choose_tile(row_length, channels // groups, unit)
    outer_channels, inner_channels = schedule.split(o, [None, tile_channels])
    outer_pixels, inner_pixels = schedule.split(pixels, [None, tile_pixels])
    tiles = row_length // tile_pixels
    # A few tiles share a task, so that starting it costs little and the weights stay in the cache.
    tasks, tile = schedule.split(outer_pixels, [None, largest_divisor(tiles, 8)])
    if rows:
        schedule.reorder(outer_channels, *rows, tasks, tile, ky, kx, i, inner_pixels, inner_channels)
    else:
        schedule.reorder(outer_channels, tasks, tile, ky, kx, i, inner_pixels, inner_channels)
    schedule.reverse_compute_at(operator.output, tile, preserve_unit_loops=True)
    schedule.parallel(schedule.fuse(outer_channels, *rows, tasks))
    lanes = unit.lanes if tile_channels % unit.lanes == 0 else tile_channels
    for block in (operator.reduction, operator.output):
        *_, pixel_loop, channel_loop = schedule.get_loops(block)
        vectors, vector = schedule.split(channel_loop, [None, lanes])
        schedule.vectorize(vector)
        schedule.unroll(vectors)
        if block == operator.reduction:
            schedule.unroll(pixel_loop)
    schedule.decompose_reduction(operator.reduction, ky)


def choose_tile(pixels: int, channels: int, unit: VectorUnit) -> tuple[int, int]:
    """How many output pixels × output channels to hold in registers.

    Both divide their axis, so that no tile needs a bounds check. The best tile does most multiply-adds a cycle on a
    core that starts two of them and two loads a cycle and takes four cycles to finish one.
    """

    def speed(tile_pixels: int, tile_channels: int) -> float:
        vectors = -(-tile_channels // unit.lanes)
        products = tile_pixels * vectors
        cycles = max(products / 2, (tile_pixels + vectors) / 2, 4)
        used_lanes = tile_channels / (vectors * unit.lanes)
        return products / cycles * used_lanes + products / 1000

    candidates = [
        (tile_pixels, tile_channels)
        for tile_channels in range(1, min(channels, 4 * unit.lanes) + 1)
        if channels % tile_channels == 0
        for vectors in [-(-tile_channels // unit.lanes)]
        for tile_pixels in range(1, min(pixels, 28) + 1)
        if pixels % tile_pixels == 0 and (tile_pixels == 1 or tile_pixels * vectors + vectors + 1 <= unit.registers)
    ]
    return max(candidates, key=lambda tile: speed(*tile))
