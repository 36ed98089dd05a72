"""Depthwise convolutions in NHWC with HWIO weights of shape [kH, kW, 1, C].

A thread computes neighbouring pixels of a row in one vector of channels, so that the window's overlap is loaded once;
threads side by side own channels side by side.
"""

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents
from tvm_passes.relax.schedules.base.convolution_match import is_depthwise, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise, bind_flat
from tvm_passes.relax.schedules.gpu.limits import GpuLimits, gpu_limits, vector_values


@dataclass(frozen=True)
class Tile:
    """What one thread computes: pixels of a row × channels."""

    pixels: int
    channels: int


class DepthwiseConvolution(DesignSpaceRule[FusedOperator, Tile]):
    """Matches an NHWC convolution in which each output channel reads the input channel of the same number."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target, device="gpu")
        return matched if matched is not None and is_depthwise(*matched) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Tile]:
        """The `tiles` of the convolution's shape."""
        n, y, x, channels, *_ = extents(schedule, operator.reduction)
        return tiles(n * y, x, channels, gpu_limits(target), widest_type(schedule, operator.reduction))

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Tile, target: Target) -> None:
        """Computes a tile a thread."""
        limits = gpu_limits(target)
        _tile(schedule, operator, way, limits)
        for block in operator.followers:
            bind_elementwise(schedule, block, limits)


def tiles(rows: int, width: int, channels: int, limits: GpuLimits, dtype: str) -> list[Tile]:
    """The tiles of an output of [rows, width, channels] of a type, those first that an analytical model thinks fastest.

    A pixel of a tile costs the loads of its window; with more pixels the window's overlap is shared. Threads that are
    too few to hide the latency of loads make all of them slower.
    """

    def cost(tile: Tile) -> float:
        threads = rows * (width // tile.pixels) * (channels // tile.channels)
        loads = (tile.pixels + 2) / tile.pixels / tile.channels
        return loads * max(1.0, limits.busy / threads)

    vector = vector_values(dtype)
    candidates = [
        Tile(tile_pixels, tile_channels)
        for tile_channels in (1, 2, 4)
        if tile_channels <= vector and channels % tile_channels == 0
        for tile_pixels in range(1, min(width, limits.accumulators(dtype) // vector) + 1)
        if width % tile_pixels == 0
    ]
    return sorted(candidates, key=lambda tile: (cost(tile), tile.pixels))


def _tile(schedule: Schedule, operator: FusedOperator, tile: Tile, limits: GpuLimits) -> None:
    for block in operator.producers:
        schedule.compute_inline(block)
    n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
    outer_pixels, pixel = schedule.split(x, [None, tile.pixels])
    vectors, vector = schedule.split(o, [None, tile.channels])
    schedule.reorder(n, y, outer_pixels, vectors, i, ky, kx, pixel, vector)
    total = math.prod(extents(schedule, operator.reduction)[:4])
    threads = bind_flat(schedule, [n, y, outer_pixels, vectors], total // (tile.pixels * tile.channels), limits)
    schedule.reverse_compute_at(operator.output, threads, preserve_unit_loops=True)
    for block in (operator.reduction, operator.output):
        *_, pixel, vector = schedule.get_loops(block)
        schedule.vectorize(vector)
        schedule.unroll(pixel)
    schedule.unroll(kx)
    schedule.decompose_reduction(operator.reduction, i)
