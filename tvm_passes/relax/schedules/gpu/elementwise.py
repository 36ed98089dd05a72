"""Blocks without reduction: maps, transposes, concatenations."""

import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_passes.relax.schedules.base.blocks import extents, widest_vector
from tvm_passes.relax.schedules.base.precision import value_types, widest_type
from tvm_passes.relax.schedules.gpu.limits import GpuLimits, vector_values


def bind_elementwise(schedule: Schedule, block: SBlockRV, limits: GpuLimits, border: int = 0) -> None:
    """Binds a block without reduction to threads: one a vector of the last axis, side by side as the output lies.

    Args:
        schedule: changed.
        block: whose loops are bound.
        limits: of the GPU.
        border: vectors must not span a multiple of it, in elements of the last axis; 0 for no border.
    """
    loops = schedule.get_loops(block)
    if not loops:
        loops = [schedule.add_unit_loop(block)]
    shape = extents(schedule, block) or [1]
    # A vector pays only where enough threads remain; what has loops inside its block has no vectors, and TVM's code for
    # OpenCL none of truth values.
    simple = isinstance(schedule.get(block).body, tirx.BufferStore) and "bool" not in value_types(schedule, block)
    limit = math.gcd(vector_values(widest_type(schedule, block)), border) if simple else 1
    width = widest_vector(shape[-1], limit) if math.prod(shape) >= limits.busy * limit else 1
    rest, vector = schedule.split(loops[-1], [None, width])
    bind_flat(schedule, [*loops[:-1], rest], math.prod(shape) // width, limits)
    if width > 1:
        schedule.vectorize(vector)


def bind_flat(schedule: Schedule, loops: list[LoopRV], total: int, limits: GpuLimits) -> LoopRV:
    """Makes one axis of loops and binds it to blocks and threads, the last loop's steps side by side.

    Args:
        schedule: changed.
        loops: nested, the outermost first.
        total: their steps.
        limits: of the GPU.

    Returns:
        The loop over a block's threads.
    """
    blocks, threads = schedule.split(schedule.fuse(*loops), [None, min(limits.block, total)])
    schedule.bind(blocks, "blockIdx.x")
    schedule.bind(threads, "threadIdx.x")
    return threads
