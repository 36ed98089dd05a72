"""Reductions: dense layers, and max, average, adaptive and global pooling.

Threads side by side own outputs side by side, channels, and so read side by side. Where outputs are too few to keep the
GPU busy, several threads share an output and join their parts through shared memory.
"""

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, axis_kinds, extents, match_reduction
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise
from tvm_passes.relax.schedules.gpu.limits import GpuLimits, gpu_limits


@dataclass(frozen=True)
class Share:
    """The threads of a block: how many outputs it owns, and how many threads share each."""

    outputs: int
    threads: int


class Reduction(DesignSpaceRule[FusedOperator, Share]):
    """Matches one reduction with elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the reduction, what follows it fused."""
        return match_reduction(func, target, "S+R+", device="gpu")

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Share]:
        """The `shares` of the reduction's shape."""
        spatial = axis_kinds(schedule, operator.reduction).count("S")
        shape = extents(schedule, operator.reduction)
        return shares(math.prod(shape[:spatial]), math.prod(shape[spatial:]), gpu_limits(target))

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Share, target: Target) -> None:
        """Shares the outputs out among threads."""
        _share(schedule, operator, way)
        for block in operator.followers:
            bind_elementwise(schedule, block, gpu_limits(target))


def shares(outputs: int, steps: int, limits: GpuLimits) -> list[Share]:
    """The ways to share reductions among threads, those first that an analytical model thinks fastest.

    Args:
        outputs: how many reductions there are.
        steps: of each.
        limits: of the GPU.
    """

    def cost(share: Share) -> float:
        # Joining the parts takes a barrier for each halving.
        cycles = -(-steps // share.threads) + 4 * math.log2(share.threads)
        rounds = max(1.0, outputs * share.threads / limits.busy)
        return cycles * rounds * max(1, 8 / share.outputs)

    candidates = [
        Share(min(outputs, block // threads), threads)
        for block in {limits.block, min(2 * limits.block, limits.threads)}
        for threads in (1, 2, 4, 8, 16, 32)
        if threads <= min(steps, block)
    ]
    return sorted(set(candidates), key=lambda share: (cost(share), share.threads, share.outputs))


def _share(schedule: Schedule, operator: FusedOperator, share: Share) -> None:
    spatial = axis_kinds(schedule, operator.reduction).count("S")
    for block in operator.producers:
        schedule.compute_inline(block)
    loops = schedule.get_loops(operator.reduction)
    blocks, outputs = schedule.split(schedule.fuse(*loops[:spatial]), [None, share.outputs])
    steps = schedule.fuse(*loops[spatial:])
    schedule.bind(blocks, "blockIdx.x")
    schedule.bind(outputs, "threadIdx.x")
    if share.threads > 1:
        steps, threads = schedule.split(steps, [None, share.threads])
        schedule.bind(threads, "threadIdx.y")
    schedule.reverse_compute_at(operator.output, outputs, preserve_unit_loops=True)
    if share.threads == 1:
        schedule.decompose_reduction(operator.reduction, steps)
