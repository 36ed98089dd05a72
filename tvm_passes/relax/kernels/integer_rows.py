"""How a 1×1 weight is quantised: row by row, an output channel each, and turned over as bytes.

A row's values are masked, and their largest is found, while its weights, bits and soft values are read one behind the
other, as a CPU foresees it. Then they are quantised as they lie, still near, and kept as bytes: neighbours, four
or eight, are what a step of the layer's kernel reads of a channel, so that to turn 16 channels over is to move words of
so many bytes, where numbers would be moved one by one.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_packing import NEAR, IntegerPacking
from tvm_passes.relax.kernels.integer_weights import IntegerWeights, QuantisedTask
from tvm_passes.relax.kernels.mask_decoding import DTYPE, LANES, LINE_BYTES, MaskDecoder, Permutation
from tvm_passes.relax.kernels.weight_storing import ChannelGroup
from tvm_passes.relax.loops.prefetch import prefetch

_SIXTEEN = 16  # Bytes of a row that are turned over together.
_SUMS = 2  # Vectors that what is found of a row is kept in, so that one need not wait for the other.


@dataclass(frozen=True)
class IntegerRows:
    """What a task of up to 16 output channels reads and writes.

    Attributes:
        weight: as one row behind the other.
        values: how many a row has.
        outputs: rows of the weight.
        decoder: of the mask, which has as many values in a row; None if there is none.
        integers: what else is read and written.
        packing: of the result.
        result: the packed weight, as one row.
    """

    weight: tirx.Var
    values: int
    outputs: tirx.Expr | int
    decoder: MaskDecoder | None
    integers: IntegerWeights
    packing: IntegerPacking
    result: tirx.Var

    @property
    def _stride(self) -> int:
        """Bytes from a row of integers to the next: whole steps, and no multiple of a page."""
        return -(-self.values // _SIXTEEN) * _SIXTEEN + LINE_BYTES

    def emit(
        self, groups: list[ChannelGroup], factors: list[tirx.Expr | None], biases: list[tirx.Expr], first: tirx.Expr
    ) -> None:
        """A task.

        Args:
            groups: its channels.
            factors, biases: of each group's 8 channels.
            first: the first vector of channels of the packed weight.
        """
        near = T.alloc_buffer((NEAR * self._stride,), "int8", scope="local")
        kept = T.alloc_buffer((-(-self.values // LANES) * LANES * LANES,), DTYPE, scope="local")
        soft = self._soft_row()
        channels = sum(group.count for group in groups)
        self._begin(near, channels)
        for group, factor, bias in zip(groups, factors, biases, strict=True):
            factor_of = None if factor is None else T.alloc_buffer((LANES,), DTYPE, scope="local")
            if factor_of is not None:
                T.buffer_store(factor_of, factor, [T.ramp(0, 1, LANES)])
            largest = self.integers.begin()
            with T.serial(group.count) as row:
                found = self._masked(T.bind(group.channel + row), row, kept, soft)
                found = found if factor_of is None else T.abs(found * factor_of[row])
                T.buffer_store(largest.values, found, [group.place + row])
            task = self.integers.quantised([group], [bias], largest)
            with T.serial(group.count) as row:
                self._quantised(task, group, row, factor_of, kept, near)
            task.finish()
        self._turn_over(near, channels, first)

    def _begin(self, near: tirx.Var, channels: int) -> None:
        """Zeros for channels that are missing, and for what stands behind a row in its last step."""
        if self.values % _SIXTEEN:
            for row in range(channels):
                place = (row + 1) * self._stride - LINE_BYTES - _SIXTEEN
                T.buffer_store(near, T.broadcast(T.int8(0), _SIXTEEN), [T.ramp(place, 1, _SIXTEEN)])
        if channels < NEAR:
            with T.serial((NEAR - channels) * self._stride // _SIXTEEN) as part:
                place = channels * self._stride + part * _SIXTEEN
                T.buffer_store(near, T.broadcast(T.int8(0), _SIXTEEN), [T.ramp(place, 1, _SIXTEEN)])

    def _soft_row(self) -> tirx.Var | None:
        """A place for a row's soft values, where decoding them first pays: not by NEON's look-up of bytes."""
        decoder = self.decoder
        if decoder is None or not decoder.scale_range or decoder.permutation is Permutation.NEON:
            return None
        vectors = -(-self.values // LANES) + 2
        soft = T.alloc_buffer((vectors * LANES,), DTYPE, scope="local")
        # A binary mask has fewer than its bits say.
        value = T.bind(decoder.any_soft_value())
        with T.serial(vectors) as vector:
            T.buffer_store(soft, value, [T.ramp(vector * LANES, 1, LANES)])
        return soft

    def _masked(self, channel: tirx.Expr, row: tirx.Expr, kept: tirx.Var, soft: tirx.Var | None) -> tirx.Expr:
        """Keeps a masked row, and gives its largest |value|."""
        # Of numbers without a sign the larger one has the larger bits, which take NEON one instruction and not two.
        found = T.alloc_buffer((_SUMS * LANES,), "int32", scope="local")
        places = [T.ramp(part * LANES, 1, LANES) for part in range(_SUMS)]
        for place in places:
            T.buffer_store(found, T.broadcast(T.int32(0), LANES), [place])
        decoder, position = self.decoder, T.alloc_buffer((1,), "int32", scope="local")
        if decoder is not None:
            T.buffer_store(position, decoder.row_start[channel] if soft is None else T.int32(LANES), [0])
            decoder = decoder if soft is None else decoder.decoded_row(channel, self.outputs, soft)

        def vector(start: tirx.Expr, count: int, part: int) -> None:
            index = T.ramp(channel * self.values + start, 1, LANES)
            if count < LANES:
                index = tirx.min(index, T.broadcast(channel * self.values + (self.values - 1), LANES))
            values = T.bind(self.weight[index])
            if decoder is not None:
                mask, zeros = decoder.decode(channel * self.values + start, position[0], ends=soft is None)
                T.buffer_store(position, position[0] + zeros, [0])
                values = values * mask
            if count < LANES:
                values = T.Select(
                    T.ramp(0, 1, LANES) < T.broadcast(count, LANES), values, T.broadcast(T.float32(0), LANES)
                )
            values = T.bind(values)
            T.buffer_store(kept, values, [self._kept_place(row, start)])
            size = T.reinterpret(f"int32x{LANES}", T.abs(values))
            T.buffer_store(found, T.max(found[places[part]], size), [places[part]])

        self._in_vectors(vector)
        return T.reinterpret(DTYPE, _folded(functools.reduce(T.max, [found[place] for place in places]), T.max))

    def _quantised(
        self,
        task: QuantisedTask,
        group: ChannelGroup,
        row: tirx.Expr,
        factors: tirx.Var | None,
        kept: tirx.Var,
        near: tirx.Var,
    ) -> None:
        """Writes a row's integers near, and their sum."""
        place = T.bind(group.place + row)
        factor = None if factors is None else T.bind(T.broadcast(factors[row], LANES))
        divisors = [T.bind(T.broadcast(one[place], LANES)) for one in task.divisors]
        sums = T.alloc_buffer((_SUMS * LANES,), "int32", scope="local")
        places = [T.ramp(part * LANES, 1, LANES) for part in range(_SUMS)]
        for part in places:
            T.buffer_store(sums, T.broadcast(T.int32(0), LANES), [part])

        following = T.bind((group.channel + row + LANES) * self.values)

        def vector(start: tirx.Expr, _count: int, part: int) -> None:
            if part == 0:
                # Memory rests in this sweep: the row that is read next but seven comes meanwhile.
                T.evaluate(prefetch(self.weight, [following + start], cache=2))
            values = kept[self._kept_place(row, start)]
            integers = T.bind(task.steps(values if factor is None else values * factor, divisors))
            T.buffer_store(sums, sums[places[part]] + integers, [places[part]])
            index = T.ramp(place * self._stride + start, 1, LANES)
            T.buffer_store(near, T.cast(integers, f"int8x{LANES}"), [index])

        self._in_vectors(vector)
        total = functools.reduce(operator.add, [sums[part] for part in places])
        T.buffer_store(task.sums, _folded(total, operator.add), [place])

    def _kept_place(self, row: tirx.Expr, start: tirx.Expr) -> tirx.Expr:
        return T.ramp(row * (-(-self.values // LANES) * LANES) + start, 1, LANES)

    def _in_vectors(self, body: Callable[[tirx.Expr, int, int], None]) -> None:
        """A loop over a row; `body` takes the start of a vector, how many values it has, and which of `_SUMS` it is."""
        width = _SUMS * LANES
        if self.values >= width:
            with T.serial(self.values // width) as step:
                for part in range(_SUMS):
                    body(T.bind(step * width + part * LANES), LANES, part)
        for start in range(self.values // width * width, self.values, LANES):
            body(T.int32(start), min(LANES, self.values - start), 0)

    def _turn_over(self, near: tirx.Var, channels: int, first: tirx.Expr) -> None:
        """Writes the rows as the kernel of the layer reads them."""
        packing = self.packing
        begin = T.bind(first * (packing.steps * len(packing.order)))
        together = _SIXTEEN // packing.rows  # Steps, and channels.
        parts, words_of_part = -(-channels // packing.width), packing.width // together

        def turn(start: tirx.Expr, steps: int) -> None:
            words = [self._words(near, start, row) for row in range(0, parts * packing.width, together)]
            for step in range(steps):
                for part in range(parts):
                    of_part = [word[step] for word in words[part * words_of_part : (part + 1) * words_of_part]]
                    packed = T.Shuffle(of_part, [T.int32(index) for index in packing.order])
                    place = begin + (start + step + part * packing.steps) * len(packing.order)
                    T.buffer_store(self.result, packed, [T.ramp(place, 1, len(packing.order))])

        whole, rest = divmod(packing.steps, together)
        if whole:
            with T.serial(whole) as number:
                turn(T.bind(number * together), together)
        if rest:
            turn(T.int32(whole * together), rest)

    def _words(self, near: tirx.Var, start: tirx.Expr, first: int) -> list[tirx.Expr]:
        """Of steps from `start` on and as many channels what each step reads, int8 [channels · rows of a step]."""
        size = self.packing.rows
        rows = []
        for row in range(first, first + _SIXTEEN // size):
            sixteen = near[T.ramp(start * size + row * self._stride, 1, _SIXTEEN)]
            rows.append(T.bind(T.reinterpret(f"int{8 * size}x{_SIXTEEN // size}", sixteen)))
        return [T.bind(T.reinterpret(f"int8x{_SIXTEEN}", word)) for word in _turned_over(rows)]


def _turned_over(rows: list[tirx.Expr]) -> list[tirx.Expr]:
    """2 vectors of 2 values or 4 of 4: the n-th of the n-th value of each."""
    if len(rows) == 2:
        return [_shuffled(rows, indices) for indices in ((0, 2), (1, 3))]
    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    pairs = [[_shuffled(two, indices) for two in (rows[::2], rows[1::2])] for indices in (low, high)]
    return [_shuffled(pair, indices) for pair in pairs for indices in (low, high)]


def _shuffled(pair: list[tirx.Expr], indices: tuple[int, ...]) -> tirx.Expr:
    return T.bind(T.Shuffle(pair, [T.int32(index) for index in indices]))


def _folded(vector: tirx.Expr, fold: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """What a function of two makes of all values of a vector of 8."""
    width = LANES
    while width > 1:
        width //= 2
        vector = T.bind(vector)
        halves = [
            T.Shuffle([vector], [T.int32(place) for place in range(first, first + width)]) for first in (0, width)
        ]
        vector = fold(*halves)
    return T.bind(vector)
