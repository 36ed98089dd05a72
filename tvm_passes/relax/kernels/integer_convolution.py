"""Convolutions of bytes by the products of `integer_vectors`, and dense layers, which are 1×1 convolutions.

A tile of output pixels × vectors of output channels stays in registers for the whole sum: each step loads 4 bytes of
each pixel and 4 weights of each channel, or by products of matrices 8 of each. What a row of the window reads lies
together, and is taken as one run of bytes whatever the number of channels, filled up to steps with weights that are 0.
A task computes some rows of some channels; where there is padding, or bytes are to be widened, it first copies what it
reads to a place of its own, with the zero point around it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_function import integer_function
from tvm_passes.relax.kernels.integer_packing import NOTHING, IntegerPacking, step_order
from tvm_passes.relax.kernels.integer_results import Requantisation, Run, store
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_source import Source, copied_rows
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

_NEARBY = 512 << 10  # Bytes of weights that stay in a second-level cache.
_NEAR = 24 << 10  # Bytes of a tile's weights that stay in a first-level cache.
_TASKS = 8  # Of each core, at least, where rows are enough.
_COPIED = 128 << 10  # Values of pixels that a task copies, so that they stay in a second-level cache.
_HEAVY = 1 << 19  # Products that are worth a second core, even if its tasks share rows.
_OTHERWISE_CUT = 4  # Tiles, the best ones, of which other tasks are worth a measurement too.
# Of the model of a tile: bytes of weights that arrive in a cycle from the second-level cache, and cycles for each
# vector of results and each tile.
_RATE, _OF_RESULT, _OF_TILE = 32, 4, 10


def packing(shape: IntegerConvolution, vectors: IntegerVectors) -> IntegerPacking:
    """How the kernel reads its weight: steps of one run after the other, in vectors of as many channels as lanes."""
    rows = vectors.packed_step
    whole, rest = divmod(shape.run, rows)
    segments: list[tuple[int, ...]] = []
    for first in range(0, len(shape.runs) * shape.run, shape.run):
        if whole:
            segments.append((whole, *range(first, first + rows)))
        if rest:
            left = range(first + whole * rows, first + shape.run)
            segments.append((1, *left, *[NOTHING] * (rows - rest)))
    return IntegerPacking(tuple(segments), step_order(vectors, vectors.lanes), shape.groups)


def packed_weight(weight: te.Tensor, shape: IntegerConvolution, vectors: IntegerVectors) -> te.Tensor:
    """A quantised weight [kH, kW, I, O] as `packing` says: int8 [vectors of channels, runs · steps, lanes · bytes]."""
    lanes, rows, packed = vectors.lanes, vectors.packed_step, packing(shape, vectors)
    steps = packed.steps // len(shape.runs)
    outputs, of_group = shape.outputs // shape.groups, shape.vectors(lanes)
    across = shape.kernel[1] if shape.run != shape.inputs else 1

    def value(vector: tirx.Var, step: tirx.Var, place: tirx.Var) -> tirx.Expr:
        lane, byte = vectors.lane_and_byte(place)
        rest = step % steps * rows + byte
        run = step // steps
        channel = vector % of_group * lanes + lane
        y, x = run // (shape.kernel[1] // across), run % (shape.kernel[1] // across) + rest // shape.inputs
        inside = tirx.all(channel < outputs, rest < shape.run)
        of_weight = weight[y, x, rest % shape.inputs, vector // of_group * outputs + channel]
        return tirx.if_then_else(inside, of_weight, tirx.const(0, "int8"))

    return te.compute(packed.shape(shape.outputs), value, name="packed")


def packed_vector(values: te.Tensor, groups: int, lanes: int) -> te.Tensor:
    """A value of each output channel [O], as the kernel reads it: that many vectors of each group, filled up with 0."""
    outputs = int(values.shape[0]) // groups
    length = -(-outputs // lanes) * lanes

    def value(place: tirx.Var) -> tirx.Expr:
        group, channel = place // length, place % length
        return tirx.if_then_else(channel < outputs, values[group * outputs + channel], tirx.const(0, values.dtype))

    return te.compute((groups * length,), value, name="filled")


@dataclass(frozen=True)
class Tile:
    """What stays in registers: rows × columns of pixels, and vectors of output channels."""

    rows: int
    columns: int
    vectors: int


def tiles(shape: IntegerConvolution, vectors: IntegerVectors, cores: int) -> list[Tile]:
    """The tiles that fit into registers, the one that is likely fastest first."""
    numbers = [number for number in (1, 2, 4, 8) if number == 1 or number <= shape.vectors(vectors.lanes)]
    found = []
    for number in numbers:
        most = vectors.most_pixels(number, shape.steps_of_sum(vectors))
        _, rows_of_map, columns_of_map = pixels(shape, vectors)
        if shape.is_flat:
            found += [Tile(rows, 1, number) for rows in range(1, min(most, rows_of_map) + 1)]
            continue
        for columns in range(1, min(most, columns_of_map) + 1):
            rows = min(most // columns, rows_of_map) if columns == columns_of_map else 1
            found.append(Tile(rows, columns, number))

    def cycles(tile: Tile) -> float:
        most = math.prod(tasks(shape, vectors, tiling(shape, vectors, cores, tile)))
        return _cycles(shape, vectors, tile) / (min(cores, most) if shape.products >= _HEAVY else 1)

    return sorted(found, key=cycles)


@dataclass(frozen=True)
class Tiling:
    """How the kernel is written.

    Attributes:
        rows, columns, vectors: of its tile.
        bands: of a task: rows of tiles.
        blocks: of a task: tiles of channels.
    """

    rows: int
    columns: int
    vectors: int
    bands: int
    blocks: int

    @property
    def tile(self) -> Tile:
        """What stays in registers."""
        return Tile(self.rows, self.columns, self.vectors)


def tilings(shape: IntegerConvolution, vectors: IntegerVectors, cores: int) -> Iterator[Tiling]:
    """The ways that are worth a measurement, the one that is likely fastest first: all tiles, few with other tasks."""
    _, _, columns = pixels(shape, vectors)
    found: dict[tuple[int, int, int], Tile] = {}
    for tile in tiles(shape, vectors, cores):
        # What cuts rows of the result into as many tiles is one way.
        found.setdefault((tile.rows, -(-columns // tile.columns), tile.vectors), tile)
    every = [tiling(shape, vectors, cores, tile) for tile in found.values()]
    yield from every[:_OTHERWISE_CUT]
    for way in every[:_OTHERWISE_CUT]:
        yield from _otherwise_cut(shape, vectors, way)
    yield from every[_OTHERWISE_CUT:]


def pixels(shape: IntegerConvolution, vectors: IntegerVectors) -> tuple[int, int, int]:
    """Batch, rows and columns of the result as tiles cut it: of a flat one each pixel is a row, of no certain image."""
    batch, rows, columns, _ = shape.result
    return (1, batch * rows * columns, 1) if shape.is_flat else (batch, rows, columns)


def tiling(shape: IntegerConvolution, vectors: IntegerVectors, cores: int, tile: Tile) -> Tiling:
    """A tile with tasks of few enough bands and blocks that cores have work, if that is worth it."""
    batch, bands, blocks = _whole(shape, vectors, tile)
    of_vector = shape.steps_of_sum(vectors) * vectors.lanes * vectors.step
    weights = shape.groups * shape.vectors(vectors.lanes) * of_vector
    most = min(blocks, blocks * _NEARBY // weights)
    if shape.products >= _HEAVY:
        most = min(most, blocks * batch * bands // cores)
    blocks_of_task = next((number for number in range(most, 1, -1) if blocks % number == 0), 1)
    wanted = -(-_TASKS * cores // (batch * (blocks // blocks_of_task)))
    bands_of_task = bands // wanted
    if shape.is_flat and not shape.is_direct(vectors):
        bands_of_task = min(bands_of_task, _COPIED // (tile.rows * shape.data[3]))
    return Tiling(tile.rows, tile.columns, tile.vectors, max(1, bands_of_task), blocks_of_task)


def is_tiling(shape: IntegerConvolution, vectors: IntegerVectors, way: Tiling) -> bool:
    """Whether a way whose numbers are above 0 computes all that there is, from registers."""
    _, bands, blocks = _whole(shape, vectors, way.tile)
    in_registers = way.rows * way.columns * way.vectors <= vectors.registers
    return in_registers and way.bands <= bands and blocks % way.blocks == 0


def _otherwise_cut(shape: IntegerConvolution, vectors: IntegerVectors, way: Tiling) -> list[Tiling]:
    """The same tile with half and twice the bands and blocks of a task, or about so many."""
    _, bands, blocks = _whole(shape, vectors, way.tile)
    divisors = [number for number in range(1, blocks + 1) if blocks % number == 0]
    place = divisors.index(way.blocks)
    several = divisors[max(0, place - 1) : place + 2]
    numbers = dict.fromkeys([way.bands, max(1, way.bands // 2), min(bands, way.bands * 2)])
    return [
        other
        for number in numbers
        for blocks_of_task in several
        if (other := Tiling(way.rows, way.columns, way.vectors, number, blocks_of_task)) != way
    ]


def _whole(shape: IntegerConvolution, vectors: IntegerVectors, tile: Tile) -> tuple[int, int, int]:
    """Images, bands of rows and blocks of channels, of all groups, that tiles cut a convolution into."""
    batch, rows, _ = pixels(shape, vectors)
    return batch, -(-rows // tile.rows), shape.groups * -(-shape.vectors(vectors.lanes) // tile.vectors)


def tasks(shape: IntegerConvolution, vectors: IntegerVectors, way: Tiling) -> tuple[int, int, int]:
    """How many tasks: for images, parts of their rows, and parts of the channels."""
    batch, bands, blocks = _whole(shape, vectors, way.tile)
    assert blocks % way.blocks == 0, f"{way} would leave channels out"
    return batch, -(-bands // way.bands), blocks // way.blocks


def _cycles(shape: IntegerConvolution, vectors: IntegerVectors, tile: Tile) -> float:
    """About how long all tiles take."""
    batch, rows, columns = pixels(shape, vectors)
    steps = shape.steps_of_sum(vectors)
    count = shape.vectors(vectors.lanes)
    far = steps * vectors.step * vectors.lanes * tile.vectors > _NEAR

    def of_tile(height: int, width: int, number: int) -> float:
        products = height * width * number
        arriving = number * vectors.lanes * vectors.step / _RATE if far else 0
        step = max(vectors.step_cycles(height * width, number), arriving, vectors.latency)
        return steps * step + _OF_RESULT * products + _OF_TILE

    def of_rows(number: int) -> float:
        across = [(width, times) for _, width, times in column_tiles(columns, tile.columns)]
        whole, rest = divmod(rows, tile.rows)
        heights = [(tile.rows, whole), (rest, 1 if rest else 0)]
        return sum(times * many * of_tile(height, width, number) for height, many in heights for width, times in across)

    whole, rest = divmod(count, tile.vectors)
    return shape.groups * batch * (whole * of_rows(tile.vectors) + (of_rows(rest) if rest else 0))


def column_tiles(columns: int, width: int) -> list[tuple[int, int, int]]:
    """Tiles along a row, at most `width` wide and as even as can be: of each width the first column, and how many."""
    count = -(-columns // width)
    least, wider = divmod(columns, count)
    found = [(0, least + 1, wider), (wider * (least + 1), least, count - wider)]
    return [tile for tile in found if tile[2]]


def integer_convolution(
    shape: IntegerConvolution, vectors: IntegerVectors, way: Tiling | None, real: bool = False
) -> tirx.PrimFunc:
    """The kernel, as `integer_function` gives it; without a way described."""
    channels = shape.groups * shape.vectors(vectors.lanes) * vectors.lanes

    def emit(way: Tiling, *arguments: Any) -> None:
        _Kernel(shape, vectors, way, *arguments).emit()

    loops = None if way is None else partial(emit, way)
    return integer_function(
        "conv2d", shape, vectors, packing(shape, vectors).shape(shape.outputs), channels, loops, real
    )


@dataclass(frozen=True)
class _Place:
    """Of which pixels and channels a tile is.

    Attributes:
        image, row, column: of its first pixel.
        input: its first channel of the data.
        vector: its first vector of channels, of those of all groups.
        channel: its first channel.
    """

    image: tirx.Expr
    row: tirx.Expr
    column: tirx.Expr
    input: tirx.Expr
    vector: tirx.Expr
    channel: tirx.Expr


@dataclass(frozen=True)
class _Kernel:
    """What the kernel reads and writes, all as one row of values; its methods write the parts of the body."""

    shape: IntegerConvolution
    vectors: IntegerVectors
    way: Tiling
    data: tirx.Var
    weight: tirx.Var
    bias: tirx.Var
    multiplier: tirx.Var
    quantisation: tirx.Var
    requantisation: Requantisation | None
    result: tirx.Var

    @property
    def tile(self) -> Tile:
        """All tiles but those at the ends."""
        return self.way.tile

    @property
    def output(self) -> tuple[int, int, int]:
        """Batch, rows and columns of the result, as tiles cut it."""
        return pixels(self.shape, self.vectors)

    @property
    def steps(self) -> int:
        """Of a sum."""
        return self.shape.steps_of_sum(self.vectors)

    @property
    def blocks(self) -> int:
        """Of channels, a tile each, in a group."""
        return -(-self.shape.vectors(self.vectors.lanes) // self.tile.vectors)

    def emit(self) -> None:
        """The loop over tasks: some rows of some blocks of channels."""
        bands_of_part, blocks_of_part = self.way.bands, self.way.blocks
        batch, parts, block_parts = tasks(self.shape, self.vectors, self.way)
        count = batch * parts * block_parts
        with (T.serial if count == 1 else T.parallel)(count) as task:
            block_part = T.bind(tirx.floormod(task, block_parts))
            image = T.bind(tirx.floordiv(tirx.floordiv(task, block_parts), parts))
            first = T.bind(tirx.floormod(tirx.floordiv(task, block_parts), parts) * bands_of_part)
            source = self._source(image, first * self.tile.rows, bands_of_part * self.tile.rows)
            with T.serial(blocks_of_part) as number:
                block = T.bind(block_part * blocks_of_part + number)
                with T.serial(bands_of_part) as band:
                    self._block(source, image, T.bind((first + band) * self.tile.rows), block)

    def _source(self, image: tirx.Expr, row: tirx.Expr, rows: int) -> Source:
        """Where a task finds the data for so many rows of the result from one on."""
        shape = self.shape
        _, height, width, channels = shape.data
        if not shape.is_direct(self.vectors):
            of_rows = shape.in_one_column if shape.is_flat else shape
            return copied_rows(of_rows, self.data, self.quantisation[1], self.vectors, image, row, rows)
        if shape.is_flat:
            return Source(self.data, T.int32(0), channels)
        return Source(self.data, T.bind(image * (height * width * channels)), width * channels)

    def _block(self, source: Source, image: tirx.Expr, row: tirx.Expr, block: tirx.Expr) -> None:
        """A band of rows of a block of channels; the last of either may be smaller."""
        _, rows, columns = self.output
        lanes, tile = self.vectors.lanes, self.tile
        of_group, count = self.shape.outputs // self.shape.groups, self.shape.vectors(self.vectors.lanes)
        group, number = T.bind(tirx.floordiv(block, self.blocks)), T.bind(tirx.floormod(block, self.blocks))
        vector = T.bind(group * count + number * tile.vectors)
        channel = T.bind(group * of_group + number * (tile.vectors * lanes))
        data_channel = group * self.shape.inputs

        def of_band(height: int, channels: int) -> None:
            for start, width, times in column_tiles(columns, tile.columns):
                with T.serial(times) as step:
                    column = T.bind(start + step * width)
                    place = _Place(image, row, column, data_channel, vector, channel)
                    self._tile(source, place, Tile(height, width, -(-channels // lanes)), channels)

        def of_channels(channels: int) -> None:
            whole_or_rest(
                T.bind(tirx.floordiv(row, tile.rows)), rows, tile.rows, lambda height: of_band(height, channels)
            )

        whole_or_rest(number, of_group, tile.vectors * lanes, of_channels)

    def _tile(self, source: Source, place: _Place, tile: Tile, channels: int) -> None:
        """The results of a tile, of which the last vector may have fewer channels."""
        lanes, at_once = self.vectors.lanes, self.vectors.pixels
        together = -(-tile.rows * tile.columns // at_once)
        sums = T.alloc_buffer((together * at_once * tile.vectors * lanes,), "int32", scope="local")
        for number in range(tile.vectors):
            begun = self.vectors.begun(T.bind(self.bias[T.ramp((place.vector + number) * lanes, 1, lanes)]))
            for first in range(together):
                for index, value in zip(self._registers(tile, first, number), begun, strict=True):
                    T.buffer_store(sums, value, [index])
        self._sum_up(source, place, tile, sums)
        by_pixel = [
            self.vectors.by_pixel([sums[index] for index in self._registers(tile, first, number)])
            for first in range(together)
            for number in range(tile.vectors)
        ]
        of_channels = [
            T.bind(self.multiplier[T.ramp((place.vector + number) * lanes, 1, lanes)]) for number in range(tile.vectors)
        ]
        every = [
            [
                T.cast(by_pixel[pixel // at_once * tile.vectors + number][pixel % at_once], f"float32x{lanes}")
                * factors
                for number, factors in enumerate(of_channels)
            ]
            for pixel in range(tile.rows * tile.columns)
        ]
        _, rows, columns = self.output
        start = T.bind(((place.image * rows + place.row) * columns + place.column) * self.shape.outputs + place.channel)
        offsets = [
            (row * columns + column) * self.shape.outputs for row in range(tile.rows) for column in range(tile.columns)
        ]
        runs = [Run(start + offset, products, channels) for offset, products in zip(offsets, every, strict=True)]
        if self.requantisation is None:
            for run in runs:
                for number, product in enumerate(run.products):
                    length = min(lanes, channels - number * lanes)
                    store(self.result, run.target + number * lanes, [T.bind(product)], range(length))
        else:
            self.requantisation.store(self.result, runs)

    def _registers(self, tile: Tile, first: int, number: int) -> list[tirx.Expr]:
        """Where the sums of the pixels of a step and a vector of channels stand, a register each."""
        lanes, at_once = self.vectors.lanes, self.vectors.pixels
        begin = (first * tile.vectors + number) * at_once
        return [T.ramp((begin + part) * lanes, 1, lanes) for part in range(at_once)]

    def _sum_up(self, source: Source, place: _Place, tile: Tile, sums: tirx.Var) -> None:
        """Adds the products of all steps to a tile's sums."""
        shape, lanes, at_once = self.shape, self.vectors.lanes, self.vectors.steps_at_once
        channels, (down, across) = shape.data[3], (1, 1) if shape.is_flat else shape.strides
        first = source.origin + place.row * (down * source.pitch) + place.column * (across * channels) + place.input
        first = T.bind(first)
        offsets = [
            row * down * source.pitch + column * across * channels
            for row in range(tile.rows)
            for column in range(tile.columns)
        ]
        pixels = self.vectors.pixels
        offsets += [offsets[-1]] * (-len(offsets) % pixels)
        joined = [offsets[first : first + pixels] for first in range(0, len(offsets), pixels)]
        of_step, steps = lanes * self.vectors.step, shape.steps(self.vectors)
        size = of_step // pixels
        weights = T.bind(place.vector * (self.steps * of_step))
        copied = not shape.is_direct(self.vectors)  # Behind copies there is space.

        def of_steps(data: tirx.Expr, step: tirx.Expr, count: int) -> None:
            # Pixel by pixel, so that of the data little is in registers.
            begin = [weights + (step + number * self.steps) * of_step for number in range(tile.vectors)]
            spread: list[list[tirx.Expr]] = []
            for ahead in range(count):
                of_vectors = [
                    [
                        T.bind(self.weight[T.ramp(one + ahead * of_step + part * size, 1, size)])
                        for part in range(pixels)
                    ]
                    for one in begin
                ]
                for first, some in enumerate(joined):
                    if ahead == 0:
                        spread.append(self.vectors.steps_of(source.buffer, [data + one for one in some], count, copied))
                    for number, of_vector in enumerate(of_vectors):
                        for index, weight in zip(self._registers(tile, first, number), of_vector, strict=True):
                            added = self.vectors.add_products(sums[index], spread[first][ahead], weight)
                            T.buffer_store(sums, added, [index])

        def of_run(run: tirx.Expr, data: tirx.Expr) -> None:
            begin = T.bind(run * steps)
            whole, rest = divmod(steps, at_once)
            if whole:
                with T.serial(whole) as step:
                    of_steps(data + step * (at_once * self.vectors.step), begin + step * at_once, at_once)
            if rest:
                of_steps(data + whole * at_once * self.vectors.step, begin + whole * at_once, rest)

        height, width = shape.kernel[0], len(shape.runs) // shape.kernel[0]
        with T.serial(height) as y, T.serial(width) as x:
            of_run(
                y * width + x,
                T.bind(first + y * (shape.dilation[0] * source.pitch) + x * (shape.dilation[1] * channels)),
            )


def whole_or_rest(number: tirx.Expr, total: int, part: int, body: Callable[[int], None]) -> None:
    """Does a part of a whole, the how manieth `number` says: all are of the same size, but what is left at the end.

    Behind the end nothing is done.
    """
    whole, rest = divmod(total, part)
    if whole:
        with T.If(number < whole), T.Then():
            body(part)
    if rest:
        with T.If(number == whole), T.Then():
            body(rest)
