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
    extent,
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
        schedule_surroundings(schedule, operator, unit)
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


def _tile(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> None:
    batch, height, width, channels, kernel_height, kernel_width, depth = extents(schedule, operator.reduction)
    data = schedule.get(operator.reduction).reads[0].source
    groups = int(data.shape[3]) // depth
    import os
    if os.environ.get('FLAT') or kernel_height * kernel_width == 1 and [int(axis) for axis in data.shape[:3]] == [batch, height, width]:
        # Without a window rows need not be kept apart, and small maps fill whole tiles.
        _flatten_pixels(schedule, operator)
        pixels, o, ky, kx, i = schedule.get_loops(operator.reduction)
        rows: list[LoopRV] = []
        row_length = batch * height * width
    else:
        n, y, pixels, o, ky, kx, i = schedule.get_loops(operator.reduction)
        rows, row_length = [schedule.fuse(n, y)], width
    tile_pixels, tile_channels = choose_tile(row_length, channels // groups, unit)
    outer_channels, inner_channels = schedule.split(o, [None, tile_channels])
    outer_pixels, inner_pixels = schedule.split(pixels, [None, tile_pixels])
    tiles = schedule.fuse(*rows, outer_pixels)
    ntiles = extent(schedule, tiles)
    PMAX=int(os.environ.get("PMAX","256")); KMAX=int(os.environ.get("KMAX","256"))
    chunks = _smallest_divisor(ntiles, max(4 * unit.cores * tile_channels // channels, ntiles*tile_pixels // PMAX))
    chunk, tile = schedule.split(tiles, [chunks, None])
    io, ii = schedule.split(i, [None, largest_divisor(depth, KMAX)])
    red = [ky, kx, io, ii]
    size, inner = 1, []
    while red and size * extent(schedule, red[-1]) <= KMAX:
        size *= extent(schedule, red[-1])
        inner.insert(0, red.pop())
    schedule.reorder(outer_channels, chunk, *red, tile, *inner, inner_pixels, inner_channels)
    task = schedule.fuse(outer_channels, chunk)
    schedule.reverse_compute_at(operator.output, task if red else tile, preserve_unit_loops=True)
    packed = schedule.cache_read(operator.reduction, 1, "global")
    schedule.compute_at(packed, red[-1] if red else task, preserve_unit_loops=True)
    *_, packed_channels = schedule.get_loops(packed)
    schedule.vectorize(packed_channels)
    schedule.parallel(task)
    if red:
        # tile the epilogue
        loops = schedule.get_loops(operator.output)
        pf = schedule.fuse(*loops[1:-1])
        po, pi = schedule.split(pf, [None, largest_divisor(extent(schedule, pf), 4)])
    lanes = unit.lanes if tile_channels % unit.lanes == 0 else tile_channels
    # Everything that touches the accumulators is unrolled, or LLVM leaves them in memory.
    for block in (operator.reduction, operator.output):
        *_, pixel_loop, channel_loop = schedule.get_loops(block)
        vectors, vector = schedule.split(channel_loop, [None, lanes])
        schedule.vectorize(vector)
        schedule.unroll(vectors)
        schedule.unroll(pixel_loop)
    schedule.decompose_reduction(operator.reduction, (red+inner)[0] if not red else red[0])


def _flatten_pixels(schedule: Schedule, operator: FusedOperator) -> None:
    """Makes one axis of n, y and x in the reduction, its accumulators and the output's loop (not its buffer)."""
    _, height, width, *_ = extents(schedule, operator.reduction)

    def flat(n: tirx.Var, y: tirx.Var, x: tirx.Var, *rest: tirx.Var) -> list[tirx.Expr]:
        return [(n * height + y) * width + x, *rest]

    schedule.transform_layout(operator.reduction, ("write", 0), lambda n, y, x, o: flat(n, y, x, o))
    schedule.transform_block_layout(operator.reduction, lambda n, y, x, o, ky, kx, i: flat(n, y, x, o, ky, kx, i))
    schedule.transform_block_layout(operator.output, lambda n, y, x, o: flat(n, y, x, o))


def _smallest_divisor(number: int, least: int) -> int:
    """The smallest divisor that is not less than `least`, or the number itself."""
    return next(divisor for divisor in range(min(max(1, least), number), number + 1) if number % divisor == 0)


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
