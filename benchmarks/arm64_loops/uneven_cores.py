"""What an inference takes on fast and slow cores together, by the tables: loops shared out equally or as it comes."""

import heapq
from collections.abc import Sequence

from arm64_loops.cores import Core
from arm64_loops.operators import OperatorCost
from tvm_passes.relax.loops.share_loops import UNITS

_REGIONS = 32  # At most: kRegions of loop_sharing.c.


def regions_of(threads: int) -> list[list[range]]:
    """The units of each region's parts, in the order in which they are taken.

    As ksm_hw/compiler/loop_sharing.c hands them out, which TVM's threads take them from and this cannot ask; a test
    compares them with the parts of a loop that ran.
    """
    count = min(1 << max(1, (threads - 1).bit_length()), _REGIONS)
    units = UNITS // count
    regions = []
    for end in range(units, UNITS + 1, units):
        parts, left = [], units
        while left > 1:
            size = max(left // 4, 1)
            parts += [range(end - left, end - left + size), range(end - left + size, end - left + 2 * size)]
            left -= 2 * size
        regions.append(parts)
    return regions


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
    regions = regions_of(len(each))
    free = [(0.0, thread) for thread in range(len(each))]
    done = 0.0
    while free:
        since, thread = heapq.heappop(free)
        turned = thread % len(regions)
        part = next((region.pop(0) for region in regions[turned:] + regions[:turned] if region), None)
        if part is None:
            done = max(done, since)
            continue
        begin, end = (unit * iterations // UNITS for unit in (part.start, part.stop))
        heapq.heappush(free, (since + (end - begin) * each[thread] / iterations, thread))
    return done


def milliseconds(costs: Sequence[tuple[Core, Sequence[OperatorCost]]], shared: bool) -> float:
    """Of an inference on all cores of some kinds, whose operators stand in the same order."""
    total = 0.0
    for same in zip(*(operators for _, operators in costs), strict=True):
        nests = zip(*(one.nests for one in same), strict=True)
        for nest in nests:
            each = [time for (core, _), (_, time) in zip(costs, nest, strict=True) for _ in range(core.count)]
            total += same[0].operator.calls * loop_milliseconds(nest[0][0], each, shared)
    return total
