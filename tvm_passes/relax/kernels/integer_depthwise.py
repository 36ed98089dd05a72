"""Depthwise convolutions of bytes by the products of `integer_vectors`.

A step multiplies 4 bytes of each lane's channel: those of 4 rows of the window, in one column. So each column of the
data is turned once into vectors of such, and used for all columns of the window, and where the 4 rows have space for
the windows of two rows of the result, for both: their weights are 0 elsewhere. A task computes some rows of all
channels, from a copy of what it reads, with the zero point around it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_convolution import column_tiles, whole_or_rest
from tvm_passes.relax.kernels.integer_function import integer_function
from tvm_passes.relax.kernels.integer_packing import NOTHING, IntegerPacking, step_order
from tvm_passes.relax.kernels.integer_results import PACKED, Requantisation, Run
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_source import Source, copied_rows
from tvm_passes.relax.kernels.integer_vectors import STEP, IntegerVectors

CHANNELS = 16
"""Channels that are computed together."""
_COLUMNS = (14, 10, 7, 5, 3)  # At most, of the result, whose code is written out.
_COPY_BYTES = 64 << 10  # Of a task's copy, if that leaves so many tasks that cores wait little.
_TASKS = 8  # Of each core, where rows are enough.


def rows_together(shape: IntegerConvolution, vectors: IntegerVectors) -> int:
    """Rows of the result whose windows are in the same vectors: two, where steps have space.

    Weights of large windows fill NEON's registers with one row.
    """
    if vectors.interleaves_some and groups_of_rows(shape) > 1:
        return 1
    space = groups_of_rows(shape) * STEP - shape.kernel[0]
    return 2 if shape.dilation[0] == 1 and space >= shape.strides[0] and shape.result[1] > 1 else 1


def groups_of_rows(shape: IntegerConvolution) -> int:
    """Steps that the rows of a window take."""
    return -(-shape.kernel[0] // STEP)


def packing(shape: IntegerConvolution, vectors: IntegerVectors) -> IntegerPacking:
    """How the kernel reads its weight: steps of [rows, groups of rows, kW]."""
    height, width = shape.kernel
    segments = []
    for row in range(rows_together(shape, vectors)):
        for first in range(-row * shape.strides[0], STEP * groups_of_rows(shape) - row * shape.strides[0], STEP):
            for x in range(width):
                window = [y * width + x if 0 <= y < height else NOTHING for y in range(first, first + STEP)]
                segments.append((1, *window))
    return IntegerPacking(tuple(segments), step_order(vectors, CHANNELS))


def packed_weight(weight: te.Tensor, shape: IntegerConvolution, vectors: IntegerVectors) -> te.Tensor:
    """A quantised weight [kH, kW, 1, C] as `packing` says: int8 [blocks, rows · groups of rows · kW, 64]."""
    width, groups = shape.kernel[1], groups_of_rows(shape)

    def value(block: tirx.Var, step: tirx.Var, place: tirx.Var) -> tirx.Expr:
        lane, byte = vectors.lane_and_byte(place % (vectors.lanes * STEP))
        channel = block * CHANNELS + place // (vectors.lanes * STEP) * vectors.lanes + lane
        row, group, x = step // (groups * width), step // width % groups, step % width
        y = group * STEP + byte - row * shape.strides[0]
        inside = tirx.all(channel < shape.outputs, y >= 0, y < shape.kernel[0])
        return tirx.if_then_else(inside, weight[y, x, 0, channel], tirx.const(0, "int8"))

    return te.compute(packing(shape, vectors).shape(shape.outputs), value, name="packed")


@dataclass(frozen=True)
class Strip:
    """How the kernel is written.

    Attributes:
        columns: at most, of the result, that are computed together.
        bands: of a task: rows whose windows are in the same vectors.
    """

    columns: int
    bands: int


def strips(shape: IntegerConvolution, vectors: IntegerVectors, cores: int) -> Iterator[Strip]:
    """The ways that are worth a measurement, the one that is likely fastest first."""
    batch, _, columns, channels = shape.result
    bands = _bands(shape, vectors)
    band_bytes = rows_together(shape, vectors) * shape.strides[0] * shape.data[2] * channels
    of_task = max(1, min(_COPY_BYTES // band_bytes, batch * bands // (_TASKS * cores), bands))
    numbers = dict.fromkeys([of_task, max(1, of_task // 2), min(bands, of_task * 2), min(bands, of_task * 4)])
    # Of widths that cut a row into as many tiles one.
    widths = {-(-columns // most): most for most in reversed(_COLUMNS)}
    return (Strip(width, number) for number in numbers for width in reversed(widths.values()))


def is_strip(shape: IntegerConvolution, vectors: IntegerVectors, way: Strip) -> bool:
    """Whether a way whose numbers are above 0 is one whose code and copies are of a size that may be asked for."""
    return way.columns <= max(_COLUMNS) and way.bands <= _bands(shape, vectors)


def _bands(shape: IntegerConvolution, vectors: IntegerVectors) -> int:
    """Of an image: rows of the result that are computed together."""
    return -(-shape.result[1] // rows_together(shape, vectors))


def integer_depthwise(shape: IntegerConvolution, vectors: IntegerVectors, way: Strip | None) -> tirx.PrimFunc:
    """The kernel, as `integer_function` gives it, without a way described; parameters are by 16 channels."""
    weight_shape = packing(shape, vectors).shape(shape.outputs)

    def emit(way: Strip, *arguments: Any) -> None:
        _Kernel(shape, vectors, way, *arguments).emit()

    loops = None if way is None else partial(emit, way)
    return integer_function("depthwise_conv2d", shape, vectors, weight_shape, weight_shape[0] * CHANNELS, loops)


@dataclass(frozen=True)
class _Tile:
    """Neighbours in one or two rows of the result, of one block of channels.

    Attributes:
        image, row, column, block: where they begin.
        height, width: how many rows and columns they are of.
    """

    image: tirx.Expr
    row: tirx.Expr
    column: tirx.Expr
    block: tirx.Expr
    height: int
    width: int


@dataclass(frozen=True)
class _Kernel:
    """What the kernel reads and writes, all as one row of values; its methods write the parts of the body."""

    shape: IntegerConvolution
    vectors: IntegerVectors
    way: Strip
    data: tirx.Var
    weight: tirx.Var
    bias: tirx.Var
    multiplier: tirx.Var
    quantisation: tirx.Var
    requantisation: Requantisation
    result: tirx.Var

    def emit(self) -> None:
        """The loop over tasks."""
        batch, rows, columns, channels = self.shape.result
        together, of_task = rows_together(self.shape, self.vectors), self.way.bands
        parts = -(-_bands(self.shape, self.vectors) // of_task)
        with (T.serial if batch * parts == 1 else T.parallel)(batch * parts) as task:
            image, part = T.bind(tirx.floordiv(task, parts)), T.bind(tirx.floormod(task, parts))
            first = T.bind(part * (of_task * together))
            rows_of_task = of_task * together
            source = copied_rows(self.shape, self.data, self.quantisation[1], self.vectors, image, first, rows_of_task)
            with T.serial(of_task) as number:
                row = T.bind(first + number * together)

                def of_channels(count: int, block: tirx.Expr, row: tirx.Expr = row) -> None:
                    def of_rows(height: int) -> None:
                        for start, width, times in column_tiles(columns, self.way.columns):
                            with T.serial(times) as step:
                                column = T.bind(start + step * width)
                                self._tile(source, _Tile(image, row, column, block, height, width), count)

                    whole_or_rest(T.bind(tirx.floordiv(row, together)), rows, together, of_rows)

                whole, rest = divmod(channels, CHANNELS)
                if whole:
                    with T.serial(whole) as block:
                        of_channels(CHANNELS, block)
                if rest:
                    of_channels(rest, T.int32(whole))

    def _tile(self, source: Source, tile: _Tile, channels: int) -> None:
        """The results of a tile, part by part of its channels."""
        together = self._vectors_together(tile.height)
        size = together * self.vectors.lanes
        whole, rest = divmod(channels, size)

        def of_part(part: tirx.Expr, some: int) -> None:
            self._part(source, tile, T.bind(part * together), some)

        if whole > 1:
            # A loop, so that LLVM keeps of one part nothing that the next one reads too.
            with T.serial(whole) as part:
                of_part(part, size)
        elif whole:
            of_part(T.int32(0), size)
        if rest:
            of_part(T.int32(whole), rest)

    def _vectors_together(self, height: int) -> int:
        """Vectors of channels, as many as leave weights and sums in registers where some are no more work than all."""
        shape, every = self.shape, CHANNELS // self.vectors.lanes
        if not self.vectors.interleaves_some:
            return every
        taps, groups = shape.kernel[1], groups_of_rows(shape)
        of_each = height * (groups * taps + -(-taps // shape.strides[1])) + groups
        most = max(1, (self.vectors.registers - STEP) // of_each)
        return next(number for number in range(min(most, every), 0, -1) if every % number == 0)

    def _part(self, source: Source, tile: _Tile, vector: tirx.Expr, channels: int) -> None:
        """Some vectors of a tile, from one of the block's on: from column to column of the data."""
        shape, lanes = self.shape, self.vectors.lanes
        _, rows, columns, every = shape.result
        numbers = range(-(-channels // lanes))
        first = T.bind(tile.block * CHANNELS + vector * lanes)
        indices = [T.ramp(first + number * lanes, 1, lanes) for number in numbers]
        bias, multiplier = ([T.bind(array[index]) for index in indices] for array in (self.bias, self.multiplier))
        weights = self._weights(tile, vector, len(numbers))
        begin = T.bind(
            source.origin
            + tile.row * (shape.strides[0] * source.pitch)
            + tile.column * (shape.strides[1] * every)
            + first
        )
        start = T.bind(((tile.image * rows + tile.row) * columns + tile.column) * every + first)
        sums: dict[tuple[int, int], list[tirx.Expr]] = {}
        done: list[list[tuple[int, list[tirx.Expr]]]] = [[] for _ in range(tile.height)]

        def finish(line: int) -> None:
            """Stores results of a row that are complete."""
            runs = []
            for place, values in done[line]:
                products = [
                    T.cast(value, f"float32x{lanes}") * factors
                    for value, factors in zip(values, multiplier, strict=True)
                ]
                runs.append(Run(start + (line * columns + place) * every, products, channels))
            self.requantisation.store(self.result, runs)
            done[line].clear()

        for x in range((tile.width - 1) * shape.strides[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1):
            uses = self._uses(x, tile.width)
            turned = self._column(source, begin + x * every, tile.height) if uses else []
            for place, tap in uses:
                for line in range(tile.height):
                    of_place = sums.setdefault((line, place), list(bias))
                    for group, data in enumerate(turned):
                        for number in numbers:
                            weight = weights(line, group, tap, number)
                            added = self.vectors.add_products(of_place[number], data[number], weight)
                            of_place[number] = T.bind(added)
                    if tap == shape.kernel[1] - 1:
                        done[line].append((place, sums.pop((line, place))))
                        if len(done[line]) * len(numbers) >= PACKED:
                            finish(line)
        for line in range(tile.height):
            finish(line)

    def _uses(self, x: int, width: int) -> list[tuple[int, int]]:
        """Which of some neighbouring results read a column of the data, each with the column of its window."""
        across, stride = self.shape.dilation[1], self.shape.strides[1]
        taps = [(place, divmod(x - place * stride, across)) for place in range(width)]
        return [(place, tap) for place, (tap, rest) in taps if rest == 0 and 0 <= tap < self.shape.kernel[1]]

    def _weights(self, tile: _Tile, vector: tirx.Expr, count: int) -> Callable[[int, int, int, int], tirx.Expr]:
        """Of some vectors of a tile's block: by row of the result, group of rows, column of the window, and vector."""
        size = self.vectors.lanes * STEP
        groups, taps, values = groups_of_rows(self.shape), self.shape.kernel[1], CHANNELS * STEP
        begin = T.bind(tile.block * (rows_together(self.shape, self.vectors) * groups * taps * values) + vector * size)
        loaded = {
            (line, group, tap, number): T.bind(
                self.weight[T.ramp(begin + ((line * groups + group) * taps + tap) * values + number * size, 1, size)]
            )
            for line in range(tile.height)
            for group in range(groups)
            for tap in range(taps)
            for number in range(count)
        }
        return lambda line, group, tap, number: loaded[line, group, tap, number]

    def _column(self, source: Source, place: tirx.Expr, height: int) -> list[list[tirx.Expr]]:
        """A column of the data: of each group of 4 rows the vectors of all channels of a block."""
        needed = (height - 1) * self.shape.strides[0] + self.shape.kernel[0]
        pitch = self.shape.dilation[0] * source.pitch
        rows = [T.bind(source.buffer[T.ramp(place + row * pitch, 1, CHANNELS)]) for row in range(needed)]
        # What stands behind the last row has weights that are 0.
        rows += [rows[-1]] * (-needed % STEP)
        return [self.vectors.interleaved(rows[first : first + STEP]) for first in range(0, len(rows), STEP)]
