"""The kernel that makes one task's weights of one layer: masked, scaled, and in the layout that `main` wants.

One pass over the weight, in parallel over blocks of output channels. A step reads 8 values of each of 8 rows (output
channels), multiplies them by the rows' masks, turns the 8×8 block over in registers, and writes 8 vectors of output
channels. So memory is read and written in whole vectors, and each value once.

A packed mask has a bit a value, and a soft value where the bit is 0. What to do with 8 bits stands in a table,
`decoding_table`: how many soft values come before each of the 8 values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target.codegen import target_has_features

from tvm_passes.relax.kernels.winograd import linear_combination, transforms
from tvm_passes.relax.loops.prefetch import prefetch

DTYPES = ("float32",)
"""The types of weights that there is a kernel for."""
LANES = 8
"""Values in a vector: a byte of the mask. CPUs with shorter vectors take two."""
_LINE_BYTES = 64  # Of the cache.
_LINE = _LINE_BYTES // 4
"""Values in a cache line: the output channels of a task."""
_PARALLEL_VALUES = 32768
"""A smaller weight is done before a second thread has woken up."""
_AHEAD = 4  # Steps between asking for a line of the result and writing it.
_PAGE_BYTES = 4096
_KERNEL = 9  # Values of a 3×3 kernel.
_COUNTS = 2048  # Where the counts of zeros begin in `decoding_table`.

# Three rounds turn 8 vectors over: vector k meets vector k + distance, twice value by value within halves of 128 bits,
# and then the halves. On x86-64 each shuffle is one instruction.
_LOW, _HIGH = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
_ROUNDS = ((2, _LOW, _HIGH), (1, _LOW, _HIGH), (4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)))


@dataclass(frozen=True)
class WeightRewrite:
    """What is done to one weight.

    Attributes:
        shape: of the weight, [O, I, kH, kW] or [O, I].
        columns: values of the mask in each row (output channel); 0 where there is no mask.
        run: how many values of a row share a value of the mask, one run behind the other; the last may be shorter.
        coded: whether the mask's soft values are codes, uint8.
        lanes: output channels that lie together in the result: O, or those of a block of packed weights.
        packed: whether the result is [O / lanes, kH, kW, I, lanes], and not [kH, kW, I, O] or [I, O].
        tile: m, where the result is G g Gᵀ of Winograd's F(m×m, 3×3), [m + 2, m + 2, O / lanes, I, lanes].
        epsilon: of the BatchNorm whose scale is folded into the weight; None if there is none.
        dtype: of the weight and of the result.
    """

    shape: tuple[int, ...]
    columns: int
    run: int
    lanes: int
    packed: bool = False
    epsilon: float | None = None
    tile: int | None = None
    coded: bool = False
    dtype: str = "float32"

    @property
    def result_shape(self) -> tuple[int, ...]:
        outputs, inputs, *kernel = self.shape
        if self.tile is not None:
            return (self.tile + 2, self.tile + 2, outputs // self.lanes, inputs, self.lanes)
        if self.packed:
            return (outputs // self.lanes, *kernel, inputs, self.lanes)
        return (*kernel, inputs, outputs)


def decoding_table() -> npt.NDArray[np.int8]:
    """int8 [2304]: what to do with each byte b of a mask.

    At 8·b stands for each of its 8 values how many zeros come before it, or a negative number where it is a one; at
    2048 + b how many zeros the byte has.
    """
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8)
    zeros = np.cumsum(1 - ones, axis=1, dtype=np.int8)
    return np.concatenate([np.where(ones, -1, zeros - 1).astype(np.int8).ravel(), zeros[:, -1]])


def weight_rewrite(rewrite: WeightRewrite, target: tvm.target.Target) -> tirx.PrimFunc:
    """The kernel.

    It takes the weight, float32 of `shape`; where there is a mask `decoding_table` and bits, scale, row_start and
    scale_range as `FoldTaskMask` describes them; with an epsilon the BatchNorm's weight and running variance, float32
    [O]; and writes the result, float32 of `result_shape`: (weight · mask) · (norm_weight / √(variance + ε))[o], of
    which with a `tile` G g Gᵀ is taken.
    """
    outputs = rewrite.shape[0]
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("rewrite_weight")
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": True})
        weight = T.arg("weight", T.buffer(rewrite.shape, "float32"))
        mask = _mask_arguments(rewrite) if rewrite.columns else None
        norms = () if rewrite.epsilon is None else ("norm_weight", "variance")
        norm = tuple(T.arg(name, T.buffer((outputs,), "float32")) for name in norms)
        result = T.arg("result", T.buffer(rewrite.result_shape, "float32"))
        with T.sblock("root"):
            # TVM looks for a block in every function.
            T.reads([])
            T.writes([])
            rows = T.decl_buffer((math.prod(rewrite.shape),), "float32", data=weight.data)
            decoder = _decoder(rewrite, mask, target_has_features("avx2", target)) if mask else None
            _Kernel(rewrite, rows, decoder, norm, result).emit()
    return builder.get()


def _mask_arguments(rewrite: WeightRewrite) -> tuple[tirx.Var, ...]:
    outputs = rewrite.shape[0]
    table = T.arg("table", T.buffer((_COUNTS + 256,), "int8"))
    bits = T.arg("bits", T.buffer((-(-outputs * rewrite.columns // 8),), "uint8"))
    scale = T.arg("scale", T.buffer((tirx.Var("zeros", "int64"),), "uint8" if rewrite.coded else "float32"))
    row_start = T.arg("row_start", T.buffer((outputs,), "int32"))
    return table, bits, scale, row_start, T.arg("scale_range", T.buffer((2,), "float32"))


@dataclass(frozen=True)
class _Decoder:
    """A packed mask, and how to decode it.

    Attributes:
        table: `decoding_table`.
        bits, scale, row_start: the mask.
        scale_range: (low, step) of coded soft values; nothing where they are numbers themselves.
        last: index of the last soft value. What lies behind it is a binary mask's: any value is its 0.
        size: how many values the mask has.
        aligned: whether each row begins with a byte.
        permutes: whether the CPU has AVX2.
    """

    table: tirx.Var
    bits: tirx.Var
    scale: tirx.Var
    row_start: tirx.Var
    scale_range: tuple[tirx.Expr, ...]
    last: tirx.Expr
    size: int
    aligned: bool
    permutes: bool

    @property
    def line(self) -> int:
        """Soft values in a cache line."""
        return _LINE_BYTES if self.scale_range else _LINE

    def decode(self, bit: tirx.Expr, position: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """8 values of the mask, and how far the position moves.

        Args:
            bit: place of the first one's bit. Bits behind the last one of the mask give any value.
            position: of the next soft value.
        """
        byte = T.bind(self._byte(bit))
        before = T.bind(T.cast(self.table[T.ramp(byte * 8, 1, LANES)], "int32x8"))
        zeros = T.cast(self.table[byte + _COUNTS], "int32")
        soft = self._permuted(position, before) if self.permutes else self._gathered(position, before)
        is_one = before < T.broadcast(T.int32(0), LANES)
        return T.bind(T.Select(is_one, T.broadcast(T.float32(1), LANES), soft)), zeros

    def _gathered(self, position: tirx.Expr, before: tirx.Expr) -> tirx.Expr:
        index = tirx.min(position + before, T.broadcast(self.last, LANES))
        return self._soft(tirx.max(index, T.broadcast(T.int32(0), LANES)))

    def _permuted(self, position: tirx.Expr, before: tirx.Expr) -> tirx.Expr:
        """As `_gathered`, with one load and an instruction of AVX2, which takes an index's low bits, in place of 8."""
        start = T.bind(tirx.min(position, self.last - (LANES - 1)))
        values, index = self._soft(T.ramp(start, 1, LANES)), before + T.broadcast(position - start, LANES)
        return T.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", values, index)

    def _soft(self, index: tirx.Expr) -> tirx.Expr:
        """8 soft values."""
        values = self.scale[index]
        if not self.scale_range:
            return values
        low, step = (T.broadcast(number, LANES) for number in self.scale_range)
        return low + T.cast(values, f"float32x{LANES}") * step

    def _byte(self, bit: tirx.Expr) -> tirx.Expr:
        """8 bits of the mask as int32, from any place on."""
        index = T.bind(tirx.floordiv(bit, 8))
        if self.aligned:
            return T.cast(self.bits[index], "int32")
        following = T.cast(self.bits[tirx.min(index + 1, (self.size - 1) // 8)], "int32")
        both = T.bitwise_or(T.shift_left(T.cast(self.bits[index], "int32"), T.int32(8)), following)
        return T.bitwise_and(T.shift_right(both, 8 - tirx.floormod(bit, 8)), T.int32(255))


def _decoder(rewrite: WeightRewrite, arguments: tuple[tirx.Var, ...], permutes: bool) -> _Decoder:
    table, bits, scale, row_start, scale_range = arguments
    numbers = (T.bind(scale_range[0]), T.bind(scale_range[1])) if rewrite.coded else ()
    last = T.bind(T.cast(scale.shape[0] - 1, "int32"))
    size = rewrite.shape[0] * rewrite.columns
    return _Decoder(table, bits, scale, row_start, numbers, last, size, rewrite.columns % 8 == 0, permutes)


@dataclass(frozen=True)
class _Group:
    """Up to 8 neighbouring output channels.

    Attributes:
        channel: the first, in the weight.
        block, lane: the first, in the result: the block of packed weights and the place in it.
        count: how many.
        place: the first, in the task's own buffers.
    """

    channel: tirx.Expr
    block: tirx.Expr
    lane: tirx.Expr
    count: int
    place: int


_Store = Callable[[_Group, int, tirx.Expr], None]
"""Stores a vector: of which channels, the how manieth value of a step, and the vector."""


@dataclass(frozen=True)
class _Kernel:
    """What the kernel reads and writes, and the parts of its body, which the methods write.

    Attributes:
        rewrite: what to do.
        weight: as one row behind the other.
        decoder: of the mask, if there is one.
        norm: the BatchNorm's weight and variance, or nothing.
        result: the result.
    """

    rewrite: WeightRewrite
    weight: tirx.Var
    decoder: _Decoder | None
    norm: tuple[tirx.Var, ...]
    result: tirx.Var

    @property
    def values(self) -> int:
        """How many a row of the weight has."""
        return math.prod(self.rewrite.shape[1:])

    def emit(self) -> None:
        """The loop over tasks: up to 16 output channels that lie together in the result."""
        outputs, lanes = self.rewrite.shape[0], self.rewrite.lanes
        tasks, rest = -(-lanes // _LINE), lanes % _LINE
        count = outputs // lanes * tasks
        small = math.prod(self.rewrite.shape) < _PARALLEL_VALUES
        with (T.serial if small or count == 1 else T.parallel)(count) as task:
            block = T.bind(tirx.floordiv(task, tasks))
            lane = T.bind(tirx.floormod(task, tasks) * _LINE)
            if rest == 0 or tasks == 1:
                self._task(block, lane, rest or _LINE)
            else:
                with T.If(lane + _LINE <= lanes):
                    with T.Then():
                        self._task(block, lane, _LINE)
                    with T.Else():
                        self._task(block, lane, rest)

    def _task(self, block: tirx.Expr, lane: tirx.Expr, channels: int) -> None:
        channel = T.bind(block * self.rewrite.lanes + lane)
        groups = [
            _Group(channel + place, block, lane + place, min(LANES, channels - place), place)
            for place in range(0, channels, LANES)
        ]
        factors = [self._factor(group) for group in groups]
        position = self._positions(groups)
        # Where each value has a value of the mask, rows are masked as they are read; else vectors of channels are.
        of_rows = position if self.rewrite.run == 1 else None
        mask = None if self.decoder is None or of_rows is not None else self._mask(self.decoder, groups, position)
        prefetch = self._prefetch(groups[0], channels)

        def sweep(start: tirx.Expr, count: int, store: _Store) -> None:
            prefetch(start)
            for group, factor in zip(groups, factors, strict=True):
                rows = [self._row(group, row, start, count, of_rows) for row in range(group.count)]
                for value, vector in enumerate(_transposed(rows)[:count]):
                    if mask is not None:
                        column = tirx.floordiv(start + value, self.rewrite.run)
                        vector = vector * mask[T.ramp(column * _LINE + group.place, 1, LANES)]
                    store(group, value, vector if factor is None else vector * factor)

        if self.rewrite.tile is None:
            _in_steps(self.values, LANES, lambda start, count: sweep(start, count, partial(self._store, start)))
        else:
            self._winograd(groups, sweep)

    def _winograd(self, groups: list[_Group], sweep: Callable[[tirx.Expr, int, _Store], None]) -> None:
        """Keeps the values of some kernels of a task's channels near, and writes what becomes of them."""
        near = T.alloc_buffer((_KERNEL * LANES, _LINE), "float32", scope="local")

        def keep(start: tirx.Expr, group: _Group, value: int, vector: tirx.Expr) -> None:
            T.buffer_store(near, vector, [start + value, T.ramp(group.place, 1, LANES)])

        def piece(first: tirx.Expr, length: int) -> None:
            _in_steps(length, LANES, lambda start, count: sweep(first + start, count, partial(keep, start)))
            with T.serial(length // _KERNEL) as kernel:
                self._transform(groups, near, kernel, tirx.floordiv(first, _KERNEL) + kernel)

        _in_steps(self.values, _KERNEL * LANES, piece)

    def _transform(self, groups: list[_Group], near: tirx.Var, kernel: tirx.Expr, channel: tirx.Expr) -> None:
        """G g Gᵀ of the kernels of one input channel; all channels of a cache line are written one behind the other."""
        weight = transforms(self.rewrite.tile).weight

        def value(group: _Group, kx: int, ky: int) -> tirx.Expr:
            return near[kernel * _KERNEL + 3 * ky + kx, T.ramp(group.place, 1, LANES)]

        def row(coefficients: tuple[Fraction, ...], group: _Group) -> list[tirx.Expr]:
            """A row of G g."""
            return [T.bind(linear_combination(coefficients, partial(value, group, kx))) for kx in range(3)]

        for a, coefficients in enumerate(weight):
            rows = [row(coefficients, group) for group in groups]
            for b, others in enumerate(weight):
                for group, columns in zip(groups, rows, strict=True):
                    self._write(group, [a, b, group.block, channel], linear_combination(others, columns.__getitem__))

    def _positions(self, groups: list[_Group]) -> tirx.Var | None:
        """Where the soft values of each row of a task begin, int32 [16]; None where no rows are decoded."""
        if self.decoder is None or self.rewrite.columns == 1:
            return None
        position = T.alloc_buffer((_LINE,), "int32", scope="local")
        for group in groups:
            for row in range(group.count):
                T.buffer_store(position, self.decoder.row_start[group.channel + row], [group.place + row])
        return position

    def _factor(self, group: _Group) -> tirx.Expr | None:
        """The BatchNorm's factor of each channel of a group."""
        if not self.norm:
            return None
        index = _neighbours(group.channel, group.count)
        weight, variance = (array[index] for array in self.norm)
        return T.bind(weight / T.sqrt(variance + T.broadcast(T.float32(self.rewrite.epsilon), LANES)))

    def _mask(self, decoder: _Decoder, groups: list[_Group], position: tirx.Var | None) -> tirx.Var:
        """The mask of a task's channels, float32 [columns · 16]: for each column the values of all channels."""
        steps = -(-self.rewrite.columns // LANES)
        mask = T.alloc_buffer((steps * LANES * _LINE,), "float32", scope="local")
        if position is None:
            # The bits of a single column are neighbours, and its soft values too.
            for group in groups:
                vector, _ = decoder.decode(group.channel, decoder.row_start[group.channel])
                T.buffer_store(mask, vector, [T.ramp(group.place, 1, LANES)])
            return mask
        with T.serial(steps) as step:
            for group in groups:
                rows = [self._mask_row(decoder, group, row, step * LANES, position) for row in range(group.count)]
                for value, vector in enumerate(_transposed(rows)):
                    place = (step * LANES + value) * _LINE + group.place
                    T.buffer_store(mask, vector, [T.ramp(place, 1, LANES)])
        return mask

    def _mask_row(self, decoder: _Decoder, group: _Group, row: int, start: tirx.Expr, position: tirx.Var) -> tirx.Expr:
        """The mask of a row from the column `start` on; moves the row's position on."""
        place = group.place + row
        vector, zeros = decoder.decode((group.channel + row) * self.rewrite.columns + start, position[place])
        T.buffer_store(position, position[place] + zeros, [place])
        return vector

    def _row(self, group: _Group, row: int, start: tirx.Expr, count: int, position: tirx.Var | None) -> tirx.Expr:
        """Values of a row of the weight from `start` on, masked where a `position` is given."""
        vector = T.bind(self.weight[_neighbours((group.channel + row) * self.values + start, count)])
        if self.decoder is None or position is None:
            return vector
        return T.bind(vector * self._mask_row(self.decoder, group, row, start, position))

    def _prefetch(self, group: _Group, channels: int) -> Callable[[tirx.Expr], None]:
        """Asks for what the next task reads, a part in each step of this one, and for the lines that steps will write.

        A task reads so many rows of weights and soft values at once, of each so little in a step, that the CPU does not
        see by itself what comes next.
        """
        steps = -(-self.values // LANES)
        weights = (group.channel + channels) * self.values
        # Rows a multiple of a page apart share a place in the cache, and would have left it again before they are read.
        weight_lines = 0 if 4 * self.values % _PAGE_BYTES == 0 else -(-channels * self.values // (steps * _LINE))
        # Of 1×1 kernels in blocks of 8 output channels two values lie in one line of the result.
        is_pointwise = self.rewrite.packed and self.values == self.rewrite.shape[1]
        values_of_line = max(1, _LINE // self.rewrite.lanes) if is_pointwise else 1
        soft, soft_lines = (None, None) if self.decoder is None else self._following(self.decoder, group, channels)
        if soft is not None:
            soft_lines = T.bind(tirx.ceildiv(soft_lines, steps))

        def in_step(start: tirx.Expr) -> None:
            step = tirx.floordiv(start, LANES)
            for line in range(weight_lines):
                T.evaluate(prefetch(self.weight, [weights + (step * weight_lines + line) * _LINE], cache=2))
            if self.decoder is not None:
                with T.serial(soft_lines) as line:
                    T.evaluate(
                        prefetch(self.decoder.scale, [soft + (step * soft_lines + line) * self.decoder.line], cache=2)
                    )
            for value in range(0, LANES if self.rewrite.tile is None else 0, values_of_line):
                T.evaluate(prefetch(self.result, self._place(group, start + _AHEAD * LANES + value), to_write=True))

        return in_step

    def _following(self, decoder: _Decoder, group: _Group, channels: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Where the next task's soft values begin, and how many cache lines they take."""
        outputs = self.rewrite.shape[0]
        following = T.bind(group.channel + channels)
        end = decoder.last + 1

        def start(channel: tirx.Expr) -> tirx.Expr:
            return tirx.min(decoder.row_start[tirx.min(channel, outputs - 1)], end)

        first = T.bind(start(following))
        behind = tirx.Select(following + channels < outputs, start(following + channels), end)
        return first, T.bind(tirx.ceildiv(behind - first, decoder.line))

    def _store(self, start: tirx.Expr, group: _Group, value: int, vector: tirx.Expr) -> None:
        """Writes one value of each channel of a group, the how manieth behind `start` in a row of the weight."""
        *indices, _lane = self._place(group, start + value)
        self._write(group, indices, vector)

    def _write(self, group: _Group, indices: list[tirx.Expr | int], vector: tirx.Expr) -> None:
        """Writes the values of the channels of a group to the result."""
        if group.count == LANES:
            T.buffer_store(self.result, vector, [*indices, T.ramp(group.lane, 1, LANES)])
            return
        vector = T.bind(vector)
        for place in range(group.count):
            T.buffer_store(self.result, T.Shuffle([vector], [T.int32(place)]), [*indices, group.lane + place])

    def _place(self, group: _Group, value: tirx.Expr) -> list[tirx.Expr]:
        """Where the result has a value of the first channel of a group."""
        _, _, *kernel = self.rewrite.shape
        inputs, value = tirx.floordiv(value, math.prod(kernel)), tirx.floormod(value, math.prod(kernel))
        indices: list[tirx.Expr] = []
        for extent in reversed(kernel):
            indices.insert(0, tirx.floormod(value, extent))
            value = tirx.floordiv(value, extent)
        return [*([group.block] if self.rewrite.packed else []), *indices, inputs, group.lane]


def _neighbours(first: tirx.Expr, count: int) -> tirx.Expr:
    """Indices of up to 8 neighbours; behind the last of them stands it again."""
    index = T.ramp(first, 1, LANES)
    return index if count == LANES else tirx.min(index, T.broadcast(first + count - 1, LANES))


def _in_steps(length: int, width: int, body: Callable[[tirx.Expr, int], None]) -> None:
    """A loop in steps of a width and what is left behind it; `body` takes the start and how many."""
    if length >= width:
        with T.serial(length // width) as step:
            body(step * width, width)
    if length % width:
        body(T.int32(length - length % width), length % width)


def _transposed(rows: list[tirx.Expr]) -> list[tirx.Expr]:
    """8 vectors, the n-th of the n-th value of each row. Rows that are missing, up to 8, give any value."""
    vectors = [*rows, *[rows[0]] * (LANES - len(rows))]
    for distance, low, high in _ROUNDS:
        turned = list(vectors)
        for first in range(LANES):
            if first & distance == 0:
                pair = [vectors[first], vectors[first + distance]]
                for place, indices in ((first, low), (first + distance, high)):
                    turned[place] = T.bind(T.Shuffle(pair, [T.int32(index) for index in indices]))
        vectors = turned
    return vectors
