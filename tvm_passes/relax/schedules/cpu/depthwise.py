"""Depthwise convolutions in NHWC with HWIO weights of shape [kH, kW, 1, C].

A task computes some rows of some channels. Vectors run over channels, and neighbouring pixels are computed at once, so
that the weights are loaded once for all of them. It reads the map as it lies, and asks where this ends for each row of
the kernel, and for pixels at the sides; or it copies what it reads, padding included, to a place of its own that stays
in the cache, where the channels of a pixel are neighbours, and no step asks.

A core whose loads are the limit computes pixels of several rows at once, which share more inputs, and goes along a row,
or all rows of a narrow map, for each vector of channels, whose weights stay in registers. In its copy the vectors of
neighbouring pixels are neighbours, so that one instruction loads two, and its sums begin with their bias.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.loops.neon_moves import move_registers
from tvm_passes.relax.schedules.base.blocks import (
    FusedOperator,
    extent,
    extents,
    largest_divisor,
    smallest_divisor,
    widest_vector,
)
from tvm_passes.relax.schedules.base.convolution_match import input_shape, is_depthwise, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.bias_first import begin_with_bias
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.tile_model import TASKS
from tvm_passes.relax.schedules.cpu.vector_unit import LINE_BYTES, VectorUnit, vector_unit

# Bytes of the input of a task: less than the first-level cache of most cores, and than their second-level cache. Tried
# on a Zen 4; `benchmarks/convolutions.py --network mobilenet_v2` measures convolutions whose first way these decide.
_NEAR, _NEARBY = 32 << 10, 128 << 10
# Of several rows at once: pixels of a row, all of them, and multiply-adds that are written out together.
_MOST_PIXELS, _MOST_SUMS, _MOST_PRODUCTS = 8, 16, 448
# Channels of a pixel that are no fewer than it takes to read memory nearly as it lies.
_FEW_CHANNELS = 64
# Tiles of a row that LLVM unrolls.
_FEW_TILES = 2


@dataclass(frozen=True)
class Sharing:
    """One way to compute a depthwise convolution.

    Attributes:
        rows, channels: of the output, that a task computes.
        pixels, lanes: of the output, that are held in registers: neighbours in a row × the channels of a vector.
        copied: whether a task copies what it reads first.
    """

    rows: int
    channels: int
    pixels: int
    lanes: int
    copied: bool


class DepthwiseConvolution(DesignSpaceRule[FusedOperator, Sharing]):
    """Matches an NHWC convolution in which each output channel reads the input channel of the same number."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target)
        return matched if matched is not None and is_depthwise(*matched) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Sharing]:
        """The `sharings` of the convolution's shape."""
        _, height, width, _ = input_shape(schedule, operator)
        *output, window, _, _ = extents(schedule, operator.reduction)
        dtype = widest_type(schedule, operator.reduction)
        return sharings(output, (height, width), window, vector_unit(target), dtype)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Sharing, target: Target) -> None:
        """Shares the work out."""
        _compute(schedule, operator, way, vector_unit(target))


def sharings(output: list[int], padded: tuple[int, int], window: int, unit: VectorUnit, dtype: str) -> list[Sharing]:
    """The ways to compute a depthwise convolution that are worth a measurement, the one that is likely fastest first.

    Args:
        output: batch, height, width and channels.
        padded: height and width of the input with its padding.
        window: height of the kernel.
        unit: of the CPU.
        dtype: of inputs, weights and results.
    """
    batch, height, width, channels = output
    lanes = widest_vector(channels, unit.lanes(dtype))
    stride = padded[0] // height

    def input_bytes(rows: int, task_channels: int) -> int:
        return value_bytes(dtype) * (padded[0] - (height - rows) * stride) * padded[1] * task_channels

    def most_rows(task_channels: int, limit: int, parts: int) -> int:
        parts = max(parts, 4 * unit.cores * task_channels // (batch * channels))
        fitting = [rows for rows in range(1, height // parts + 1) if input_bytes(rows, task_channels) <= limit]
        return largest_divisor(height, max(fitting, default=1))

    line = lanes * largest_divisor(channels // lanes, max(1, LINE_BYTES // (value_bytes(dtype) * lanes)))
    wider = [lanes * largest_divisor(channels // lanes, count * line // lanes) for count in (3, 2, 6)]
    near = [width for width in wider if input_bytes(height, width) <= _NEAR]
    widths = list(dict.fromkeys([*near, line, *wider]))
    # Eight results in flight keep two multiply-adds a cycle busy that take four cycles each. Of 16 registers seven are
    # left for them, beside weights and inputs; with a stride pixels share few inputs, and a quarter is left.
    quarter = unit.registers // 4
    most = min(8, unit.registers // 2 - 1) if stride == 1 else quarter
    pixels = [largest_divisor(width, limit) for limit in (most, quarter, 2 * quarter, 2, 1)]
    pixels.sort(key=lambda pixel: pixel < min(most, quarter))

    def at_once(rows: int) -> list[int]:
        """Numbers of pixels, the best first."""
        if not unit.by_lane:
            return list(dict.fromkeys(pixels))
        numbers = [number for number in range(1, min(width, _MOST_PIXELS) + 1) if width % number == 0]
        return sorted(numbers, key=lambda number: (_inputs_an_output(number, rows, window, stride, unit), -number))

    limits = (_NEARBY, _NEARBY // 2, _NEAR, 2 * _NEARBY)
    # Parts of the map for all cores are as many tasks for each, but more of the map is copied twice.
    even = unit.cores if height % unit.cores == 0 else 1
    copying = [
        Sharing(most_rows(task_channels, limit, parts), task_channels, pixel, lanes, copied=True)
        for parts in (1, even)
        for limit in limits
        for pixel in at_once(most_rows(widths[0], limit, parts))
        for task_channels in widths
    ]
    in_place = () if unit.by_lane else _in_place(output, window, lanes, line, unit, dtype)
    return list(dict.fromkeys([*in_place, *copying]))


def _in_place(output: list[int], window: int, lanes: int, line: int, unit: VectorUnit, dtype: str) -> Iterator[Sharing]:
    """The ways that read the map as it lies.

    A pixel's channels follow each other, all of them, or of maps with many so few that the rows of a kernel stay in the
    first-level cache, where each is read again; but fewer are slower than that. Where rows are too few for `TASKS` of
    each core, tasks take some of the channels as well.
    """
    _, height, width, channels = output
    lines = channels // line
    rows_bytes = value_bytes(dtype) * window * width * channels
    near = largest_divisor(lines, min(smallest_divisor(lines, -(-rows_bytes // _NEAR)), channels // _FEW_CHANNELS))
    for tasks in (TASKS * unit.cores, unit.cores):
        rows = largest_divisor(height, max(1, height // tasks))
        parts = smallest_divisor(lines, -(-tasks // (height // rows)))
        for count in dict.fromkeys((max(near, parts), parts)):
            for pixels in pixels_in_place(width, window):
                yield Sharing(rows, channels // count, pixels, lanes, copied=False)


def pixels_in_place(width: int, window: int) -> list[int]:
    """How many pixels of a row to hold in registers where the map is read as it lies, the best first.

    A large map comes from memory, and fewer sums leave more loads in flight.
    """
    wanted = (4, 8, 7) if window <= 3 else (7, 8, 4)
    return [number for number in dict.fromkeys([*wanted, largest_divisor(width, 8)]) if width % number == 0]


def rows_at_once(pixels: int, rows: int, window: int, stride: int, unit: VectorUnit) -> int:
    """Rows of a task of which so many pixels each are held in registers together, beside weights and inputs."""
    if not unit.by_lane:
        return 1
    live = min(rows, -(-window // stride))  # Rows of results that an input is part of.
    if window > 3:
        fitting = 2 if stride == 1 or pixels <= _MOST_SUMS // 4 else 1
    elif pixels * live <= _MOST_SUMS:
        fitting = _MOST_PRODUCTS // (window**2 * pixels)
    else:
        fitting = _MOST_SUMS // pixels
    return largest_divisor(rows, max(1, fitting))


def _inputs_an_output(pixels: int, rows: int, window: int, stride: int, unit: VectorUnit) -> float:
    """How many values are loaded for each one of the output that is held in registers with others."""
    together = rows_at_once(pixels, rows, window, stride, unit)
    return ((pixels - 1) * stride + window) * ((together - 1) * stride + window) / (pixels * together)


def _compute(schedule: Schedule, operator: FusedOperator, sharing: Sharing, unit: VectorUnit) -> None:
    for block in operator.followers:
        schedule_elementwise(schedule, block, unit)
    window = extents(schedule, operator.reduction)[4]
    stride = input_shape(schedule, operator)[1] // extents(schedule, operator.reduction)[1]
    together = rows_at_once(sharing.pixels, sharing.rows, window, stride, unit)
    n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
    several = [together] if unit.by_lane else []
    parts, row, *inner_rows = schedule.split(y, [None, sharing.rows // together, *several])
    outer_pixels, inner_pixels = schedule.split(x, [None, sharing.pixels])
    blocks, vectors, vector = schedule.split(o, [None, sharing.channels // sharing.lanes, sharing.lanes])
    few_tiles = extent(schedule, outer_pixels) <= _FEW_TILES
    order = [row, outer_pixels, vectors]
    if unit.by_lane:
        # Weights are loaded once for all of a loop: a longer one than LLVM would unroll.
        order = [vectors, row, outer_pixels] if few_tiles else [row, vectors, outer_pixels]
    schedule.reorder(n, parts, blocks, *order, i, ky, kx, *inner_rows, inner_pixels, vector)
    task = schedule.fuse(n, parts, blocks)
    tile = schedule.fuse(row, outer_pixels) if unit.by_lane and few_tiles else order[-1]
    if unit.by_lane:
        move_registers(schedule, [vectors, tile] if few_tiles else order)
    schedule.reverse_compute_at(operator.output, tile, preserve_unit_loops=True)
    for block in operator.producers:
        if not sharing.copied:
            schedule.compute_inline(block)
            continue
        if unit.by_lane:
            _together(schedule, block, sharing.lanes)
        schedule.compute_at(block, task, preserve_unit_loops=True)
        last = schedule.get_loops(block)[-1]
        schedule.vectorize(last if unit.by_lane else schedule.split(last, [None, sharing.lanes])[1])
    schedule.parallel(task)
    schedule.vectorize(vector)
    unrolled = [inner_pixels, kx]
    *_, output_row, output_pixel, output_vector = schedule.get_loops(operator.output)
    if unit.by_lane:
        unrolled += [*inner_rows, output_row, output_pixel]
        if math.prod((together, sharing.pixels, window, window)) <= _MOST_PRODUCTS:
            unrolled.append(ky)
    for loop in unrolled:
        schedule.unroll(loop)
    schedule.vectorize(output_vector)
    start = schedule.decompose_reduction(operator.reduction, i)
    if unit.by_lane:
        begin_with_bias(schedule, start, operator.output)


def _together(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    """Lays a copy of inputs out such that vectors of neighbouring pixels are neighbours: two are one load."""

    def packed(n: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> list[tirx.Expr]:
        return [n, i // lanes, y, x, i % lanes]

    schedule.transform_layout(block, ("write", 0), packed)
    schedule.transform_block_layout(block, packed)
