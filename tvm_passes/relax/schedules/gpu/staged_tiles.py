"""Matrix products on GPUs whose shared memory lies beside their cores, NVIDIA's: tiles staged there.

A block of threads computes a tile of rows × columns. For each step of the depth it copies the data and the weights that
the tile needs to shared memory, the data with their depth outermost, so that a thread loads neighbouring rows of one
depth, and neighbouring columns, as vectors. A thread's own tile stays in registers.

Where tiles are too few to keep the GPU busy the depth is split: each part is a block's, and a second kernel adds the
parts up and goes on with what follows the product.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extent, extents, largest_divisor, widest_vector
from tvm_passes.relax.schedules.base.precision import value_bytes
from tvm_passes.relax.schedules.gpu.elementwise import bind_flat
from tvm_passes.relax.schedules.gpu.limits import GpuLimits, vector_values

FEWEST_ROWS = 16  # Fewer do not fill a tile.
_BANKS = 32  # Of shared memory, a float each.
_PAD = 4  # Floats behind a row of shared memory, so that those of one column lie in different banks.
_UNROLLED = 8  # Steps of the depth: more of them are too much code for the instructions' cache.

# The analytical model, fitted to 499 kernels on an H200 (docs/cuda.md): it misses a time by 11 %, and of the kernels
# that were measured of an operator it picks one that is 1.7 % slower than the best. Shapes of blocks that were not
# measured are left out: with these it was wrong by a factor of two.
_MULTIPROCESSORS = 132
_CORES = 128  # Of a multiprocessor.
_REGISTERS = 65536  # Of a multiprocessor.
_SHARED_BYTES = 227 * 1024  # Of a multiprocessor: CUDA C++ Programming Guide, compute capability 9.0.
_THREADS = 2048  # Of a multiprocessor.
_CYCLES = 1.75e3  # A microsecond.
_START = 1.9  # Microseconds of a kernel that does nothing.
_STEP = 110  # Cycles of a step that nothing hides: copies and barriers.
_HALF_BUSY = 5.1  # Warps with which a multiprocessor is busy half of the time.
_COPY = 0.036  # Cycles to copy a value of a tile's data or weights to shared memory.
_PARTS_BYTES = 7.3e6  # That are written or read of parts in a microsecond: they stay in the cache.
# By the rows and columns of a thread: its registers, and the share of the cores' peak that it reaches.
_THREAD_TILES: Mapping[tuple[int, int], tuple[int, float]] = MappingProxyType(
    {(4, 4): (56, 0.7), (8, 4): (72, 0.84), (8, 8): (128, 0.88)}
)


@dataclass(frozen=True)
class StagedTile:
    """What one thread computes, how many threads a block has, the depth of a step, and the parts of the depth."""

    rows: int
    columns: int
    row_threads: int
    column_threads: int
    depth: int
    parts: int

    @property
    def block_rows(self) -> int:
        """Rows that a block computes."""
        return self.rows * self.row_threads

    @property
    def block_columns(self) -> int:
        """Columns that a block computes."""
        return self.columns * self.column_threads

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.row_threads * self.column_threads


@dataclass(frozen=True)
class Product:
    """What a matrix product computes: rows × columns, and for each of them a depth of `window` × `channels`.

    A step takes some of the channels, or where they are few all of them for a row of the window, `window_row`.
    """

    rows: int
    columns: int
    window: int
    window_row: int
    channels: int

    @property
    def whole_rows(self) -> bool:
        """Whether channels are so few that a step takes a row of the window."""
        return self.channels <= 4 < self.window * self.channels


def staged_tiles(product: Product, limits: GpuLimits, dtype: str, whole: bool = False) -> list[StagedTile]:
    """The tiles that a GPU can run, those first that an analytical model thinks fastest; at most 24.

    Args:
        product: what is computed.
        limits: of the GPU.
        dtype: of data, weights and results.
        whole: whether tiles must divide the rows, which nothing pads.
    """
    candidates = {
        StagedTile(rows, columns, row_threads, column_threads, step, parts)
        for rows, columns in _THREAD_TILES
        if product.columns % columns == 0 and rows * columns <= limits.accumulators(dtype)
        for column_threads in {largest_divisor(product.columns // columns, limit) for limit in (8, 16)}
        for row_threads in (8, 16)
        if limits.warp <= row_threads * column_threads <= limits.threads
        and not (whole and product.rows % (rows * row_threads))
        for step in {largest_divisor(product.channels, limit) for limit in (8, 16, 32)}
        for parts in (1, 2, 3, 4, 6, 8, 12, 16)
        if product.channels // step % parts == 0 and (parts == 1 or product.window * product.channels >= 48 * parts)
    }
    fitting = [tile for tile in candidates if _shared_values(tile, product) * value_bytes(dtype) <= limits.shared_bytes]
    # A block that is no whole number of warps wastes lanes, and NVRTC has been seen to spill registers there.
    best = [tile for tile in fitting if tile.threads % limits.warp == 0] or fitting
    return sorted(best, key=lambda tile: (_microseconds(tile, product), str(tile)))[:24]


def _shared_values(tile: StagedTile, product: Product) -> int:
    """Values that a block holds in shared memory."""
    rows = tile.block_rows + _BANKS + _PAD
    return _step_depth(tile, product) * (rows + tile.block_columns)


def _step_depth(tile: StagedTile, product: Product) -> int:
    return tile.depth * (product.window_row if product.whole_rows else 1)


def _microseconds(tile: StagedTile, product: Product) -> float:
    """How long the product takes by the model: that of the multiprocessor with the most blocks."""
    registers, efficiency = _THREAD_TILES[tile.rows, tile.columns]
    row_blocks = -(-product.rows // tile.block_rows)
    blocks = row_blocks * (product.columns // tile.block_columns) * tile.parts
    depth = product.window * product.channels / tile.parts
    warps = -(-tile.threads // 32)
    values = _shared_values(tile, product) * 4
    fitting = min(_THREADS // tile.threads, _REGISTERS // (tile.threads * registers), _SHARED_BYTES // values)
    at_once = max(1, fitting)
    of_one = -(-blocks // _MULTIPROCESSORS)
    resident = min(at_once, of_one) * warps
    products = tile.block_rows * tile.block_columns / _CORES / (efficiency * tile.threads / (warps * 32))
    copies = (tile.block_rows + tile.block_columns) * _COPY
    cycles = of_one * (products + copies) * depth * (resident + _HALF_BUSY) / resident
    cycles += depth / _step_depth(tile, product) * _STEP * -(-of_one // at_once)
    joined = 0 if tile.parts == 1 else 4 * product.rows * product.columns * 2 * (tile.parts + 1) / _PARTS_BYTES
    return _START + cycles / _CYCLES + joined


def stage(
    schedule: Schedule, operator: FusedOperator, data: SBlockRV, tile: StagedTile, limits: GpuLimits, dtype: str
) -> None:
    """Schedules a product in one kernel, or with parts in two.

    Args:
        schedule: changed.
        operator: its reduction's axes are rows, columns, any of a window, and the channels; weights are read at
            [window, channels, columns].
        data: the block that copies what a reduction reads, its axes rows, window and channels.
        tile: whose columns and depth divide the product's, and whose rows do.
        limits: of the GPU.
        dtype: of data, weights and results.
    """
    vector = vector_values(dtype)
    if tile.parts == 1:
        _stage(schedule, operator.reduction, operator.output, data, tile, vector)
        return
    *_, depth = schedule.get_loops(operator.reduction)
    parts, _ = schedule.split(depth, [tile.parts, None])
    part = schedule.rfactor(parts, 0)
    schedule.set_scope(part, 0, "global")
    result = schedule.cache_write(part, 0, "local")
    _stage(schedule, part, result, data, tile, vector)
    _add_parts(schedule, operator, limits, vector)


def _stage(
    schedule: Schedule, reduction: SBlockRV, output: SBlockRV, data: SBlockRV, tile: StagedTile, vector: int
) -> None:
    """Binds a reduction to blocks and threads. Its axes are rows, columns, window, parts if any, and channels."""
    weights = schedule.cache_read(reduction, 1, "shared")
    own_data, own_weights = schedule.cache_read(reduction, 0, "local"), schedule.cache_read(reduction, 1, "local")
    schedule.set_scope(data, 0, "shared")
    schedule.transform_layout(data, ("write", 0), lambda *axes: (*axes[1:], axes[0]))
    rows, columns, *window, depth = schedule.get_loops(reduction)
    parts = [window.pop()] if tile.parts > 1 else []
    row_blocks, row_threads, row = schedule.split(rows, [None, tile.row_threads, tile.rows])
    column_blocks, column_threads, column = schedule.split(columns, [None, tile.column_threads, tile.columns])
    inner = [window.pop()] if window and extent(schedule, depth) <= vector else []
    steps, step = schedule.split(depth, [None, tile.depth])
    schedule.reorder(
        *parts, row_blocks, column_blocks, row_threads, column_threads, *window, steps, *inner, step, row, column
    )
    schedule.bind(schedule.fuse(*parts, row_blocks, column_blocks), "blockIdx.x")
    schedule.bind(row_threads, "threadIdx.y")
    schedule.bind(column_threads, "threadIdx.x")
    for block, axis in ((own_data, 0), (own_weights, -1)):
        schedule.compute_at(block, step, preserve_unit_loops=True)
        own = _own_loops(schedule, block)
        neighbours = own.pop(axis)
        schedule.reorder(*own, neighbours)
        _in_vectors(schedule, neighbours, vector)
    for block in (data, weights):
        schedule.compute_at(block, steps, preserve_unit_loops=True)
        _copy_together(schedule, block, tile, vector)
    schedule.storage_align(data, 0, axis=-2, factor=_BANKS, offset=_PAD)
    schedule.reverse_compute_at(output, column_threads, preserve_unit_loops=True)
    *_, written_row, written_column = schedule.get_loops(output)
    _in_vectors(schedule, written_column, vector)
    _, unrolled = schedule.split(step, [None, largest_divisor(tile.depth, _UNROLLED)])
    for loop in (unrolled, row, written_row):
        schedule.unroll(loop)
    _in_vectors(schedule, column, vector)
    schedule.decompose_reduction(reduction, (*window, steps)[0])


def _own_loops(schedule: Schedule, block: SBlockRV) -> list[LoopRV]:
    """The loops over what a block computes in one step of the loop that it was moved to."""
    return list(schedule.get_loops(block)[-len(extents(schedule, block)) :])


def _in_vectors(schedule: Schedule, loop: LoopRV, vector: int) -> None:
    outer, inner = schedule.split(loop, [None, widest_vector(extent(schedule, loop), vector)])
    schedule.vectorize(inner)
    schedule.unroll(outer)


def _copy_together(schedule: Schedule, block: SBlockRV, tile: StagedTile, vector: int) -> None:
    """Shares out what a block copies in one step among all threads, neighbours what lies side by side."""
    loops = _own_loops(schedule, block)
    width = widest_vector(extent(schedule, loops[-1]), vector)
    rounds, rows, columns, values = schedule.split(
        schedule.fuse(*loops), [None, tile.row_threads, tile.column_threads, width]
    )
    schedule.bind(rows, "threadIdx.y")
    schedule.bind(columns, "threadIdx.x")
    schedule.vectorize(values)
    schedule.unroll(rounds)


def _add_parts(schedule: Schedule, operator: FusedOperator, limits: GpuLimits, vector: int) -> None:
    """Binds the sum over parts, with what follows, to threads of a kernel of its own."""
    schedule.set_scope(operator.reduction, 0, "local")
    *rows, columns = schedule.get_loops(operator.output)
    vectors, values = schedule.split(columns, [None, vector])
    total = math.prod(extents(schedule, operator.output)) // vector
    # Whole blocks: what has a condition does not become vectors.
    whole = dataclasses.replace(limits, block=largest_divisor(total, limits.block))
    threads = bind_flat(schedule, [*rows, vectors], total, whole)
    schedule.compute_at(operator.reduction, threads, preserve_unit_loops=True)
    schedule.vectorize(values)
    part, _row, column, *_ = _own_loops(schedule, operator.reduction)
    schedule.vectorize(column)
    schedule.unroll(part)
    schedule.decompose_reduction(operator.reduction, part)
