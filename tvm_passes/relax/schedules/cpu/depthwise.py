"""Depthwise convolutions in NHWC with HWIO weights of shape [kH, kW, 1, C].

A task computes some rows of some channels. It copies what it reads of them, padding included, to a place of its own
that stays in the cache; there the channels of a pixel are neighbours, and no step asks where the map ends. Vectors run
over channels, and neighbouring pixels are computed at once, so that the weights are loaded once for all of them.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents, largest_divisor, widest_vector
from tvm_passes.relax.schedules.base.convolution_match import input_shape, is_depthwise, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.vector_unit import LINE_BYTES, VectorUnit, vector_unit

# Bytes of the input of a task: less than the first-level cache of most cores, and than their second-level cache. Tried
# on a Zen 4; `benchmarks/convolutions.py --network mobilenet_v2` measures convolutions whose first way these decide.
_NEAR, _NEARBY = 32 << 10, 128 << 10


@dataclass(frozen=True)
class Sharing:
    """One way to compute a depthwise convolution.

    Attributes:
        rows, channels: of the output, that a task computes.
        pixels, lanes: of the output, that are held in registers: neighbours in a row × the channels of a vector.
    """

    rows: int
    channels: int
    pixels: int
    lanes: int


class DepthwiseConvolution(DesignSpaceRule[FusedOperator, Sharing]):
    """Matches an NHWC convolution in which each output channel reads the input channel of the same number."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target)
        return matched if matched is not None and is_depthwise(*matched) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Sharing]:
        """The `sharings` of the convolution's shape."""
        _, height, width, _ = input_shape(schedule, operator)
        output, dtype = extents(schedule, operator.reduction)[:4], widest_type(schedule, operator.reduction)
        return sharings(output, (height, width), vector_unit(target), dtype)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Sharing, target: Target) -> None:
        """Shares the work out."""
        _compute(schedule, operator, way, vector_unit(target))


def sharings(output: list[int], padded: tuple[int, int], unit: VectorUnit, dtype: str) -> list[Sharing]:
    """The ways to compute a depthwise convolution that are worth a measurement, the one that is likely fastest first.

    Args:
        output: batch, height, width and channels.
        padded: height and width of the input with its padding.
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
    limits = (_NEARBY, _NEARBY // 2, _NEAR, 2 * _NEARBY)
    # Parts of the map for all cores are as many tasks for each, but more of the map is copied twice.
    even = unit.cores if height % unit.cores == 0 else 1
    return list(
        dict.fromkeys(
            Sharing(most_rows(task_channels, limit, parts), task_channels, pixel, lanes)
            for parts in (1, even)
            for limit in limits
            for pixel in dict.fromkeys(pixels)
            for task_channels in widths
        )
    )


def _compute(schedule: Schedule, operator: FusedOperator, sharing: Sharing, unit: VectorUnit) -> None:
    for block in operator.followers:
        schedule_elementwise(schedule, block, unit)
    n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
    parts, row = schedule.split(y, [None, sharing.rows])
    outer_pixels, inner_pixels = schedule.split(x, [None, sharing.pixels])
    blocks, vectors, vector = schedule.split(o, [None, sharing.channels // sharing.lanes, sharing.lanes])
    schedule.reorder(n, parts, blocks, row, outer_pixels, vectors, i, ky, kx, inner_pixels, vector)
    task = schedule.fuse(n, parts, blocks)
    schedule.reverse_compute_at(operator.output, vectors, preserve_unit_loops=True)
    for block in operator.producers:
        schedule.compute_at(block, task, preserve_unit_loops=True)
        schedule.vectorize(schedule.split(schedule.get_loops(block)[-1], [None, sharing.lanes])[1])
    schedule.parallel(task)
    schedule.vectorize(vector)
    schedule.unroll(inner_pixels)
    schedule.unroll(kx)
    schedule.vectorize(schedule.get_loops(operator.output)[-1])
    schedule.decompose_reduction(operator.reduction, i)
