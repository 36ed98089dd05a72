"""Winograd convolutions (`tvm_passes.relax.kernels.winograd`) on CPUs.

The matrix products hold some tiles × a block of output channels in registers, as direct convolutions do with pixels.
The work is shared out in one of two ways:

    by tiles         a task takes some rows of tiles through all steps, from padding to the output, in buffers of its
                     own that its caches hold; it reads all of the transformed weights
    by frequencies   step after step, each in parallel: a task of the matrix products reads its own part of the
                     weights, once; for weights that caches do not hold
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.winograd import ANNOTATION
from tvm_passes.relax.loops.prefetch import ask_ahead
from tvm_passes.relax.schedules.base.blocks import blocks_of, extent, extents, largest_divisor, static_schedule
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import is_modelled, value_bytes, widest_type
from tvm_passes.relax.schedules.cpu.lanes import apart, read_in_vectors, steps_at_once
from tvm_passes.relax.schedules.cpu.tile_model import TASKS, asking_pays, ranked_tiles
from tvm_passes.relax.schedules.cpu.vector_unit import LINE_BYTES, VectorUnit, vector_unit

# Transformed weights up to the first size stay in a shared cache from task to task, and what a task holds itself, up to
# the second, in the caches of its core. Tried on an AMD Zen 4; `benchmarks/convolutions.py --network vgg16_bn` (and
# `resnet18`) measures convolutions whose first way they decide.
CACHED_BYTES, TASK_BYTES = 4 << 20, 2 << 20


@dataclass(frozen=True)
class Sharing:
    """One way to share the work out.

    Attributes:
        rows: of tiles that a task takes through all steps; 0 for the way by frequencies.
        tiles: that the matrix products hold in registers at once.
    """

    rows: int
    tiles: int


@dataclass(frozen=True)
class Steps:
    """The blocks of a Winograd convolution, in the order of the function."""

    padded: SBlockRV
    data_rows: SBlockRV
    data_transform: SBlockRV
    products: SBlockRV
    output_rows: SBlockRV
    output: SBlockRV


class WinogradConvolution(DesignSpaceRule[Steps, Sharing]):
    """Matches a Winograd convolution, with or without elementwise operators of its shape behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, Steps] | None:
        """A schedule of the convolution, what follows it inlined but for the last."""
        schedule = static_schedule(func, target, "SSSSSR")
        blocks = blocks_of(schedule) if schedule is not None else []
        if schedule is None or not any(ANNOTATION in schedule.get(block).annotations for block in blocks):
            return None
        padded, data_rows, data_transform, products, output_rows, *outputs = blocks
        shape = extents(schedule, outputs[0])
        if any(extents(schedule, block) != shape for block in outputs) or not is_modelled(schedule, products):
            return None
        for block in outputs[:-1]:
            schedule.compute_inline(block)
        return schedule, Steps(padded, data_rows, data_transform, products, output_rows, outputs[-1])

    def ways(self, schedule: Schedule, operator: Steps, target: Target) -> list[Sharing]:
        """The `sharings` of the convolution's shape."""
        transform, products = (extents(schedule, block) for block in (operator.data_transform, operator.products))
        return sharings(transform, products, vector_unit(target), widest_type(schedule, operator.products))

    def apply_way(self, schedule: Schedule, operator: Steps, way: Sharing, target: Target) -> None:
        """Shares the work out."""
        dtype = widest_type(schedule, operator.products)
        unit, line = vector_unit(target), LINE_BYTES // value_bytes(dtype)
        lanes = unit.lanes(dtype)
        columns = extents(schedule, operator.data_transform)[4]
        _tiles_of_tasks(schedule, operator.products, way.rows * columns)
        inputs = _inputs_apart(schedule, operator.products, unit)
        for block in (operator.data_transform, operator.products):
            schedule.storage_align(block, 0, 1, 8 * line, line)
        task = _share_output(schedule, operator, way.rows, lanes)
        if way.rows:
            between = [] if inputs is None else [inputs[0]]
            for block in (operator.products, *between, operator.data_transform):
                schedule.compute_at(block, task, preserve_unit_loops=True)
        _transform_data(schedule, operator, None if way.rows == 0 else task, lanes)
        _multiply(schedule, operator.products, way, unit, inputs)


def sharings(transform: list[int], products: list[int], unit: VectorUnit, dtype: str) -> list[Sharing]:
    """The ways to share a convolution out that are worth a measurement, the one that is likely fastest first.

    Args:
        transform: the extents of the transform of the data: m + 2, m + 2, batch, rows and columns of tiles, channels.
        products: the extents of the matrix products: m + 2, m + 2, tiles, blocks of output channels, channels of one,
            input channels.
        unit: of the CPU.
        dtype: of all values.
    """
    side, _, batch, rows, columns, inputs = transform
    *_, blocks, lanes, _ = products
    size = value_bytes(dtype)
    weight_bytes = size * side * side * inputs * blocks * lanes
    # Of a row of tiles, and of its products.
    row_bytes = size * side * side * columns * (inputs + blocks * lanes)

    def preference(number: int) -> tuple[bool, int, int]:
        """Of tasks of so many rows, the smaller the better: as few as there may be, but enough to be shared out."""
        tasks = batch * rows // number
        return number > 1 and number * row_bytes > TASK_BYTES, -min(tasks, TASKS * unit.cores), -number

    # Divisors alone: a task that runs over the end would check bounds everywhere.
    divisors = [number for number in range(1, rows + 1) if rows % number == 0]
    by_tiles = sorted(divisors, key=preference)[:4]
    # By frequencies the weights are read once, but what is transformed goes through memory.
    once = weight_bytes > min(CACHED_BYTES, batch * rows * row_bytes)
    ways = [0, *by_tiles] if once else [*by_tiles, 0]
    found = []
    for number in ways:
        pixels = (number or batch * rows) * columns
        tiles = [tile for (tile, channels), _ in ranked_tiles(pixels, lanes, 1, unit, dtype) if channels == lanes]
        best = tiles[:3]
        if not unit.by_lane:  # Tiles that run over the end check it in every step, which costs larger ones less.
            best.sort(key=lambda tile: -tile if pixels % tile else -pixels)
        found += [(place, Sharing(number, tile)) for place, tile in enumerate(best)]
    return [sharing for _, sharing in sorted(found, key=lambda one: one[0])]


def _tiles_of_tasks(schedule: Schedule, products: SBlockRV, tiles: int) -> None:
    """Counts the tiles of each task from 0, of which it has so many; all of them for 0.

    Where the last tiles that are held in registers at once run over a task's end, all blocks then ask the same of them.
    """
    number = tiles or extents(schedule, products)[2]

    def stored(a: tirx.Var, b: tirx.Var, tile: tirx.Var, block: tirx.Var, lane: tirx.Var) -> list[tirx.Expr]:
        return [a, b, tile // number, tile % number, block, lane]

    def computed(
        a: tirx.Var, b: tirx.Var, tile: tirx.Var, block: tirx.Var, lane: tirx.Var, channel: tirx.Var
    ) -> list[tirx.Expr]:
        return [*stored(a, b, tile, block, lane), channel]

    schedule.transform_block_layout(products, computed)
    schedule.transform_layout(products, ("write", 0), stored)


def _share_output(schedule: Schedule, step: Steps, rows: int, lanes: int) -> LoopRV:
    """Computes the output tile by tile; returns the loop of tasks."""
    tile = int(schedule.get(step.products).annotations[ANNOTATION])
    width = extents(schedule, step.products)[5]
    n, y, x, o = schedule.get_loops(step.output)
    row, inner_y = schedule.split(y, [None, tile])
    column, inner_x = schedule.split(x, [None, tile])
    block, vectors, vector = schedule.split(o, [None, width // lanes, lanes])
    chunk, row = schedule.split(row, [None, rows or 1])
    schedule.reorder(n, chunk, row, column, block, vectors, inner_y, inner_x, vector)
    task = schedule.fuse(n, chunk)
    schedule.parallel(task)
    schedule.compute_at(step.output_rows, vectors, preserve_unit_loops=True)
    inner_row, element, *_, lane = schedule.get_loops(step.output_rows)[-7:]
    for loop in (vector, lane):
        schedule.vectorize(loop)
    _unroll(schedule, inner_y, inner_x, inner_row, element)
    return task


def _transform_data(schedule: Schedule, step: Steps, task: LoopRV | None, lanes: int) -> None:
    """Schedules padding and the transform of the data, inside the loop of tasks, or before it as loops of their own."""
    element_y, element_x, n, row, column, channel = schedule.get_loops(step.data_transform)[-6:]
    # Whole cache lines of the channels, so that the rows of a line are done while it is near.
    width = largest_divisor(extent(schedule, channel), 2 * lanes)
    lanes = largest_divisor(width, lanes)
    lines, vectors, vector = schedule.split(channel, [None, width // lanes, lanes])
    schedule.reorder(n, row, lines, column, vectors, element_y, element_x, vector)
    if task is None:
        lines = schedule.fuse(n, row, lines)
        schedule.parallel(lines)
    schedule.compute_at(step.data_rows, lines, preserve_unit_loops=True)
    _unroll(schedule, element_y, element_x)
    schedule.vectorize(vector)
    element, n, row, column, channel = schedule.get_loops(step.data_rows)[-5:]
    vectors, vector = schedule.split(channel, [None, lanes])
    schedule.reorder(n, row, column, vectors, element, vector)
    _unroll(schedule, element)
    schedule.vectorize(vector)
    if task is not None:
        schedule.compute_at(step.padded, task, preserve_unit_loops=True)
    n, y, _x, channel = schedule.get_loops(step.padded)[-4:]
    if task is None:
        schedule.parallel(schedule.fuse(n, y))
    schedule.vectorize(schedule.split(channel, [None, width])[1])


def _inputs_apart(schedule: Schedule, products: SBlockRV, unit: VectorUnit) -> tuple[SBlockRV, int] | None:
    """What the matrix products multiply as a block of its own, and how many steps of it are read together."""
    steps = steps_at_once(schedule, products, unit) if unit.by_lane else 1
    return (apart(schedule, products), steps) if steps > 1 else None


def _multiply(
    schedule: Schedule, products: SBlockRV, sharing: Sharing, unit: VectorUnit, inputs: tuple[SBlockRV, int] | None
) -> None:
    lanes = unit.lanes(widest_type(schedule, products))
    copy = schedule.cache_write(products, 0, "local")
    element_y, element_x, part, tiles, block, lane, channel = schedule.get_loops(products)[-7:]
    block_bytes = value_bytes(widest_type(schedule, products)) * extent(schedule, channel) * extent(schedule, lane)
    outer, inner = schedule.split(tiles, [None, sharing.tiles])
    steps = []
    if inputs is not None:
        channel, *steps = schedule.split(channel, [None, inputs[1]])
    schedule.reorder(part, element_y, element_x, block, outer, channel, *steps, inner, lane)
    schedule.reverse_compute_at(copy, outer, preserve_unit_loops=True)
    if sharing.rows == 0:
        schedule.parallel(schedule.fuse(element_y, element_x, block))
    if inputs is not None:
        read_in_vectors(schedule, inputs[0], channel, len(schedule.get_loops(products)) - len([*steps, inner, lane]))
        _unroll(schedule, *steps)
    # The copy's loop over blocks of channels, one block, is inside the loop over tiles.
    for one, position in ((products, -2), (copy, -3)):
        loops = schedule.get_loops(one)
        vectors, vector = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(vector)
        _unroll(schedule, vectors, loops[position])
    schedule.decompose_reduction(products, channel)
    if unit.has_spare_slots and asking_pays(extent(schedule, outer), block_bytes):
        ask_ahead(schedule, [channel, *steps][-1], axis=2, distance=1)


def _unroll(schedule: Schedule, *loops: LoopRV) -> None:
    for loop in loops:
        schedule.unroll(loop)
