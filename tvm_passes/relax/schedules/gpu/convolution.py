"""Convolutions in NHWC with HWIO weights: direct, strided, dilated, grouped, and 1×1.

A thread computes a tile of output pixels × output channels in registers. Every step loads a vector of input channels
for each pixel and the weights between these and the tile's channels: a matrix product in registers, whose row is an
output pixel and whose column an output channel. Threads side by side own channels side by side, so that they load
weights and store results together and share their inputs. Nothing goes through shared memory: a Mali's lies in main
memory.
"""

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target
from tvm.tirx import IndexMap

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extent, extents, largest_divisor, widest_vector
from tvm_passes.relax.schedules.base.convolution_match import input_shape, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import value_bytes, widest_type
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise
from tvm_passes.relax.schedules.gpu.limits import GpuLimits, gpu_limits, vector_values

_LINE_BYTES = 64  # What neighbours should load together.


@dataclass(frozen=True)
class Tile:
    """What one thread computes, and how many threads a block has."""

    pixels: int
    channels: int
    pixel_threads: int
    channel_threads: int


class Convolution(DesignSpaceRule[FusedOperator, Tile]):
    """Matches one NHWC convolution, with or without padding in front and elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target, device="gpu")
        # One pixel is a dense layer, which has too few outputs for tiles.
        return matched if matched is not None and _pixels(*matched) > 1 else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Tile]:
        """The `tiles` of the convolution's shape."""
        pixels, channels = _pixels(schedule, operator), extents(schedule, operator.reduction)[3]
        dtype = widest_type(schedule, operator.reduction)
        return tiles(pixels, channels, _groups(schedule, operator), gpu_limits(target), dtype)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Tile, target: Target) -> None:
        """Computes a tile a thread."""
        inputs = flatten_pixels(schedule, operator, way.pixels * way.pixel_threads, _groups(schedule, operator))
        _tile(schedule, operator, inputs, way)
        for block in operator.followers:
            bind_elementwise(schedule, block, gpu_limits(target))


def _pixels(schedule: Schedule, operator: FusedOperator) -> int:
    """Of the output, of all images."""
    return math.prod(extents(schedule, operator.reduction)[:3])


def _groups(schedule: Schedule, operator: FusedOperator) -> int:
    return input_shape(schedule, operator)[3] // extents(schedule, operator.reduction)[6]


def tiles(pixels: int, channels: int, groups: int, limits: GpuLimits, dtype: str) -> list[Tile]:
    """The tiles that a GPU can run, those first that an analytical model thinks fastest; at most 24.

    Args:
        pixels: output pixels, of all images.
        channels: output channels. A tile's are a divisor of a group's, so that its pixels share their inputs.
        groups: of the convolution.
        limits: of the GPU.
        dtype: of inputs, weights and results.
    """
    group = channels // groups
    candidates = {
        Tile(tile_pixels, tile_channels, pixel_threads, channel_threads)
        for tile_channels in (1, 2, 4, 8)
        if group % tile_channels == 0
        for tile_pixels in (1, 2, 3, 4, 5, 6, 7, 8)
        if tile_pixels <= pixels and tile_pixels * tile_channels <= limits.accumulators(dtype)
        for channel_threads in {largest_divisor(channels // tile_channels, limit) for limit in (8, 16, 32)}
        for pixel_threads in {min(-(-pixels // tile_pixels), max(1, limits.block // channel_threads))}
        if pixel_threads * channel_threads <= limits.threads
    }
    return sorted(candidates, key=lambda tile: (_cost(tile, pixels, channels, limits, dtype), str(tile)))[:24]


def _cost(tile: Tile, pixels: int, channels: int, limits: GpuLimits, dtype: str) -> float:
    """Cycles of a thread for each useful multiply-add, made longer where threads are too few to hide its latencies.

    A load of a vector takes as long as its multiply-adds. For one vector of input channels a tile loads one vector a
    pixel, and for each of these channels its output channels.
    """
    vector = vector_values(dtype)
    products = tile.pixels * tile.channels
    loads = tile.pixels + tile.channels / min(tile.channels, vector) * vector
    block_pixels = tile.pixels * tile.pixel_threads
    computed = -(-pixels // block_pixels) * block_pixels
    threads = computed // tile.pixels * (channels // tile.channels)
    idle_lanes = max(1.0, limits.warp / (tile.pixel_threads * tile.channel_threads))
    # Neighbours that load less than a cache line together waste the rest of it.
    uncoalesced = max(1.0, _LINE_BYTES / (value_bytes(dtype) * tile.channels * tile.channel_threads))
    cycles = (products * vector + loads * vector * uncoalesced) / (products * vector)
    return cycles * computed / pixels * idle_lanes * max(1.0, limits.busy / threads)


def flatten_pixels(schedule: Schedule, operator: FusedOperator, block_pixels: int, groups: int) -> SBlockRV | None:
    """Makes one axis of n, y and x, and rounds it up to whole blocks of threads, so that the reduction has no branch.

    Args:
        schedule: changed.
        operator: a convolution.
        block_pixels: that a block of threads computes.
        groups: of the convolution.

    Returns:
        The block that copies the input, padded with zeros, to where a tile's pixels and input channels are axes; None
        with groups, where input channels depend on the output's: there the reduction reads the input itself.
    """
    n, height, width, *_ = extents(schedule, operator.reduction)
    strides = [height * width, width, 1]
    inputs = _flat_inputs(schedule, operator, strides) if groups == 1 else None
    for block in operator.producers:
        schedule.compute_inline(block)
    schedule.transform_layout(operator.reduction, ("write", 0), _flattened(strides, 4))
    schedule.transform_block_layout(operator.reduction, _flattened(strides, 7))
    schedule.transform_block_layout(operator.output, _flattened(strides, 4))
    if inputs is not None and n * height * width % block_pixels:
        schedule.pad_einsum(operator.reduction, [block_pixels, 1, 1, 1, 1])
        (padded,) = schedule.get_consumers(inputs)
        schedule.compute_inline(inputs)
        inputs = padded
        (cropped,) = schedule.get_consumers(operator.reduction)
        schedule.compute_inline(cropped)
    return inputs


def _flat_inputs(schedule: Schedule, operator: FusedOperator, strides: list[int]) -> SBlockRV:
    """Gives the reduction a copy of its input whose axes are the reduction's, the pixels' joined to one."""
    inputs = schedule.reindex(operator.reduction, ("read", 0))
    reduction = schedule.get(operator.reduction)
    indices = [index.min for index in reduction.reads[0].region]
    # Where the output is one pixel high or wide, the copy may lack that axis.
    there = [any(index.same_as(axis.var) for index in indices) for axis in reduction.iter_vars[:3]]
    flat = _flattened([stride for stride, is_there in zip(strides, there, strict=True) if is_there], len(indices))
    schedule.transform_layout(inputs, ("write", 0), flat)
    schedule.transform_block_layout(inputs, flat)
    return inputs


def _flattened(strides: list[int], rank: int) -> IndexMap:
    """Joins the first of `rank` axes to one, by what a step along each counts in it."""

    def flat(*axes: tirx.Var) -> list[tirx.Expr]:
        return [sum(axis * stride for axis, stride in zip(axes, strides, strict=False)), *axes[len(strides) :]]

    return IndexMap.from_func(flat, ndim=rank)


def _tile(schedule: Schedule, operator: FusedOperator, inputs: SBlockRV | None, tile: Tile) -> None:
    pixels, channels, *window, depth = schedule.get_loops(operator.reduction)
    pixel_blocks, pixel_threads, pixel = schedule.split(pixels, [None, tile.pixel_threads, tile.pixels])
    channel_blocks, channel_threads, channel = schedule.split(channels, [None, tile.channel_threads, tile.channels])
    # Without a common copy of the inputs there is nothing to load in vectors.
    vector = vector_values(widest_type(schedule, operator.reduction))
    step = widest_vector(extent(schedule, depth), vector) if inputs is not None else 1
    length = widest_vector(tile.channels, vector)
    steps, inner_depth = schedule.split(depth, [None, step])
    schedule.reorder(
        pixel_blocks, channel_blocks, pixel_threads, channel_threads, *window, steps, inner_depth, pixel, channel
    )
    schedule.bind(schedule.fuse(pixel_blocks, channel_blocks), "blockIdx.x")
    schedule.bind(pixel_threads, "threadIdx.y")
    schedule.bind(channel_threads, "threadIdx.x")
    weights = schedule.cache_read(operator.reduction, 1, "local")
    schedule.compute_at(weights, steps, preserve_unit_loops=True)
    _in_registers(schedule, _own_loops(schedule, weights), length)
    if inputs is not None:
        schedule.set_scope(inputs, 0, "local")
        schedule.compute_at(inputs, steps, preserve_unit_loops=True)
        _in_registers(schedule, _own_loops(schedule, inputs), step)
    schedule.reverse_compute_at(operator.output, channel_threads, preserve_unit_loops=True)
    _in_registers(schedule, _own_loops(schedule, operator.output), length)
    _in_registers(schedule, [inner_depth, pixel, channel], length)
    schedule.decompose_reduction(operator.reduction, window[0])


def _own_loops(schedule: Schedule, block: SBlockRV) -> list[LoopRV]:
    """The loops over what a block writes in one step of the loop that it was moved to."""
    return list(schedule.get_loops(block)[-len(extents(schedule, block)) :])


def _in_registers(schedule: Schedule, loops: list[LoopRV], length: int) -> None:
    """Unrolls loops, the last of them in vectors of a length: only then what they read and write is in registers."""
    *unrolled, last = loops
    outer, vector = schedule.split(last, [None, length])
    schedule.vectorize(vector)
    for loop in (*unrolled, outer):
        schedule.unroll(loop)
