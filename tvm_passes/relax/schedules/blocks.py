"""Finding and fusing the blocks of a TIR function: what every rule does before it tiles."""

from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar


@dataclass
class FusedOperator:
    """A function that computes one reduction and, element by element, what follows it."""

    producers: list[SBlockRV]
    """Blocks that prepare the reduction's input (padding), in the order of the function."""
    reduction: SBlockRV
    """The reduction; it accumulates in a buffer that becomes local to a tile."""
    output: SBlockRV
    """Reads the accumulators once each and writes the result: elementwise operators of the reduction's shape."""
    followers: list[SBlockRV]
    """What broadcasts the result to a larger shape, such as a squeeze-and-excitation's multiplication: one block."""


def static_schedule(func: tirx.PrimFunc) -> Schedule | None:
    """A schedule of a function whose blocks' extents are all known and that no one has scheduled; else None."""
    schedule = Schedule(func)
    for block in blocks_of(schedule):
        if not all(isinstance(axis.dom.extent, tirx.IntImm) for axis in schedule.get(block).iter_vars):
            return None
        if len(schedule.get_loops(block)) != len(schedule.get(block).iter_vars):
            return None
    return schedule


def blocks_of(schedule: Schedule) -> list[SBlockRV]:
    """The blocks of the function `main` in program order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def axis_kinds(schedule: Schedule, block: SBlockRV) -> str:
    """One letter an axis: S for spatial, R for reduction, O for others, such as `SSSSRRR` for a convolution."""
    letters = {IterVar.DataPar: "S", IterVar.CommReduce: "R"}
    return "".join(letters.get(axis.iter_type, "O") for axis in schedule.get(block).iter_vars)


def extents(schedule: Schedule, block: SBlockRV) -> list[int]:
    """The extent of every axis of a block."""
    return [int(axis.dom.extent) for axis in schedule.get(block).iter_vars]


def extent(schedule: Schedule, loop: LoopRV) -> int:
    """The extent of a loop."""
    return int(schedule.get(loop).extent)


def fused_operator(schedule: Schedule, axes: str) -> FusedOperator | None:
    """Inlines the elementwise blocks behind the only reduction; None if there is no, or another, reduction.

    Args:
        schedule: of the function; changed only if the answer is not None.
        axes: the axis kinds that the reduction must have.
    """
    blocks = blocks_of(schedule)
    kinds = [axis_kinds(schedule, block) for block in blocks]
    reductions = [index for index, kind in enumerate(kinds) if set(kind) != {"S"}]
    if len(reductions) != 1 or kinds[reductions[0]] != axes:
        return None
    position = reductions[0]
    reduction, after = blocks[position], blocks[position + 1 :]
    shape = [int(axis) for axis in schedule.get(reduction).writes[0].source.shape]
    same_shape = [block for block in after if extents(schedule, block) == shape]
    followers = after[len(same_shape) :]
    if same_shape != after[: len(same_shape)]:
        return None
    for block in [*same_shape[:-1], *followers[:-1]]:
        schedule.compute_inline(block)
    output = same_shape[-1] if same_shape else schedule.cache_write(reduction, 0, "local")
    schedule.set_scope(reduction, 0, "local")
    return FusedOperator(blocks[:position], reduction, output, followers[-1:])


def schedule_elementwise(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    """Runs a block in parallel, the innermost axis in vectors. For padding, transposes and other maps."""
    loops = schedule.get_loops(block)
    width = widest_vector(extent(schedule, loops[-1]), 2 * lanes)
    fused = schedule.fuse(*loops)
    total = extent(schedule, fused)
    width = width if width > 1 else widest_vector(total, lanes)
    rest, vector = schedule.split(fused, [None, width])
    if width > 1:
        schedule.vectorize(vector)
    # Small tensors are done before a second thread has woken up.
    if total >= 8192:
        chunk, _ = schedule.split(rest, [None, largest_divisor(total // width, max(1, 2048 // width))])
        schedule.parallel(chunk)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that does not exceed the limit."""
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)


def smallest_divisor(number: int, least: int) -> int:
    """The smallest divisor of a number that is not less than `least`, or the number itself."""
    return next(divisor for divisor in range(max(1, min(number, least)), number + 1) if number % divisor == 0)


def widest_vector(length: int, limit: int) -> int:
    """The largest divisor of a length that is a power of two, up to the limit: vectors must not run over the end."""
    return next(width for width in (64, 32, 16, 8, 4, 2, 1) if width <= limit and length % width == 0)


__all__ = [
    "FusedOperator",
    "axis_kinds",
    "blocks_of",
    "extent",
    "extents",
    "fused_operator",
    "largest_divisor",
    "s_tir",
    "schedule_elementwise",
    "static_schedule",
    "widest_vector",
]
