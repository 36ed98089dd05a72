"""What an inference takes on fast and slow cores together, by the tables: loops shared out equally or as it comes."""

import heapq
from collections.abc import Sequence

from arm64_loops.cores import Core
from arm64_loops.operators import OperatorCost
from tvm_passes.relax.loops.share_loops import UNITS


def parts_as_they_come(threads: int) -> list[range]:
    """The units of a loop's parts in the order in which threads take them: ksm_hw/compiler/loop_sharing.c."""
    width = min(1 << max(1, (threads - 1).bit_length()), UNITS // 2)
    parts, left = [], UNITS
    while left >= width:
        size = max(left // 2 // width, 1)
        parts += [range(start, start + size) for start in range(UNITS - left, UNITS - left + width * size, size)]
        left //= 2
    return parts


def loop_milliseconds(iterations: int, each: Sequence[float], shared: bool) -> float:
    """Of a parallel loop on some cores.

    Args:
        iterations: of the loop.
        each: milliseconds of all iterations on each of the cores.
        shared: whether cores take parts as they become free; otherwise each has an equal part.
    """
    if not shared:
        most = -(-iterations // len(each))
        return max(most * one / iterations for one in each)
    free = [(0.0, one) for one in sorted(each)]
    for part in parts_as_they_come(len(each)):
        begin, end = (unit * iterations // UNITS for unit in (part.start, part.stop))
        since, one = heapq.heappop(free)
        heapq.heappush(free, (since + (end - begin) * one / iterations, one))
    return max(since for since, _ in free)


def milliseconds(costs: Sequence[tuple[Core, Sequence[OperatorCost]]], shared: bool) -> float:
    """Of an inference on all cores of some kinds, whose operators stand in the same order."""
    total = 0.0
    for same in zip(*(operators for _, operators in costs), strict=True):
        nests = zip(*(one.nests for one in same), strict=True)
        for nest in nests:
            each = [time for (core, _), (_, time) in zip(costs, nest, strict=True) for _ in range(core.count)]
            total += same[0].operator.calls * loop_milliseconds(nest[0][0], each, shared)
    return total
