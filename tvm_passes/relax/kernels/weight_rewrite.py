"""The kernel that makes one task's weights of one layer: masked, scaled, and in the layout that `main` wants.

One pass over the weight, in parallel over blocks of output channels. A step reads 8 values of each of 8 rows (output
channels), multiplies them by the rows' masks (`mask_decoding`), turns the 8×8 block over in registers, and writes 8
vectors of output channels (`weight_storing`). So memory is read and written in whole vectors, and each value once.

What becomes of a single row of 8 masked values, for a CPU without AVX2 (… stands for more of the same):

    zeros = TypeVar("zeros")
    @T.prim_func(private=True, s_tir=True)
    def main(weight: T.Buffer((1, 8), "float32"), table: T.Buffer((2304,), "int8"), bits: T.Buffer((1,), "uint8"),
        scale: T.Buffer((zeros,), "float32"), row_start: T.Buffer((1,), "int32"), scale_range: T.Buffer((2,),
        "float32"), result: T.Buffer((8, 1), "float32")):
        T.func_attr({"op_pattern": 8, "tirx.is_scheduled": True, "tirx.noalias": True, "written_as_loops": True})
        with T.sblock("root"):
            T.reads()
            T.writes()
            buffer = weight.view(8)
            v: T.let[T.int32] = T.Cast("int32", zeros - T.int64(1))
            for v_1 in range(1):
                v_2: T.let[T.int32] = v_1
                v_3: T.let[T.int32] = 0
                v_4: T.let[T.int32] = v_2 + v_3
                buffer_1 = T.alloc_local((16,), "int32")
                buffer_1[0] = row_start[v_4]
                v_5: T.let[T.int32] = v_4 + 1
                v_6: T.let[T.int32] = T.min(row_start[T.min(v_5, 0)], v + 1)
                v_7: T.let[T.int32] = (T.Select(v_5 + 1 < 1, T.min(row_start[T.min(v_5 + 1, 0)], v + 1),
                    v + 1) - v_6 + 16 - 1) // 16
                v_8: T.let[T.int32] = v_7 + 1 - 1
                for v_9 in range(1):
                    T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[(v_4 + 1) * 8 +
                        v_9 * 8 // 8 * 16]), 0, 2, 1)
                    for v_10 in range(v_8):
                        T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(scale[v_6 +
                            (v_9 * 8 // 8 * v_8 + v_10) * 16]), 0, 2, 1)
                    T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(result[v_9 * 8 + 32,
                        v_3]), 1, 3, 1)
                    …
                    v_10: T.let[T.float32x8] = buffer[T.Ramp(v_4 * 8 + v_9 * 8, 1, 8)]
                    v_11: T.let[T.int32] = (v_4 * 8 + v_9 * 8) // 8
                    v_12: T.let[T.int32] = T.Cast("int32", bits[v_11])
                    v_13: T.let[T.int32x8] = T.Cast("int32x8", table[T.Ramp(v_12 * 8, 1, 8)])
                    v_14: T.let[T.float32x8] = T.Select(v_13 < T.Broadcast(0, 8),
                        T.Broadcast(T.float32(1.0), 8), scale[T.max(T.min(T.Broadcast(buffer_1[0],
                        8) + v_13, T.Broadcast(v, 8)), T.Broadcast(0, 8))])
                    buffer_1[0] = buffer_1[0] + T.Cast("int32", table[v_12 + 2048])
                    v_15: T.let[T.float32x8] = v_10 * v_14
                    v_16: T.let[T.float32x8] = T.Shuffle([v_15, v_15], [0, 8, 1, 9, 4, 12, 5, 13])
                    v_17: T.let[T.float32x8] = T.Shuffle([v_15, v_15], [2, 10, 3, 11, 6, 14, 7, 15])
                    …
                    v_40: T.let[T.float32x8] = v_32
                    result[v_9 * 8, v_3] = T.Shuffle([v_40], [0])
                    …
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.exact_quotient import has_fused_products
from tvm_passes.relax.kernels.integer_packing import NEAR, IntegerPacking
from tvm_passes.relax.kernels.integer_rows import IntegerRows
from tvm_passes.relax.kernels.integer_weights import IntegerWeights, Largest, QuantisedTask
from tvm_passes.relax.kernels.mask_decoding import (
    DTYPE,
    LANES,
    LINE_BYTES,
    MaskDecoder,
    Number,
    Permutation,
    decoder_of,
    mask_arguments,
    permutation_of,
    quotient,
)
from tvm_passes.relax.kernels.neon_rows import ROWS, NeonRows
from tvm_passes.relax.kernels.quantised import Clamp
from tvm_passes.relax.kernels.weight_storing import KERNEL, ChannelGroup, WeightStore, transposed
from tvm_passes.relax.kernels.written_function import ATTRIBUTES, root_block
from tvm_passes.relax.loops.prefetch import prefetch

VALUE_BYTES = np.dtype(DTYPE).itemsize
_LINE = LINE_BYTES // VALUE_BYTES
"""Values in a cache line: the output channels of a task."""
_PARALLEL_VALUES = 32768
"""A smaller weight is done before a second thread has woken up."""
_AHEAD = 4  # Steps between asking for a line of the result and writing it.
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class WeightRewrite:
    """What is done to one weight.

    Attributes:
        shape: of the weight, [O, I, kH, kW] or [O, I].
        columns: values of the mask in each row (output channel); 0 where there is no mask.
        run: how many values of a row share a value of the mask, one run behind the other; the last may be shorter.
        coded: whether the mask's soft values are codes, uint8.
        rounds: whether what a code adds to the lowest soft value is rounded before, as of a weight that is quantised.
        lanes: output channels that lie together in the result: O, or those of a block of packed weights.
        packed: whether the result is [O / lanes, kH, kW, I, lanes], and not [kH, kW, I, O] or [I, O].
        tile: m, where the result is G g Gᵀ of Winograd's F(m×m, 3×3), [m + 2, m + 2, O / lanes, I, lanes].
        epsilon: of the BatchNorm whose scale is folded into the weight; None if there is none.
        integers: of a weight that is quantised, with its layer's bias, the type that holds the layer's data, else None
            (`integer_weights.py`).
        clamp: of a weight that is quantised, of the layer's results; None where these are real values.
        shifted: whether the bias is found here, of the BatchNorm whose scale is folded into the weight.
        packing: of the integers; None if they are [kH, kW, I, O] or [I, O] too.
        zeros: how many output channels of packed weights stand behind the weight's, all 0.
        any_channels: whether `shape` and `columns` are an example only (`shared`).
    """

    shape: tuple[int, ...]
    columns: int
    run: int
    lanes: int
    packed: bool = False
    epsilon: float | None = None
    tile: int | None = None
    coded: bool = False
    rounds: bool = False
    integers: str | None = None
    clamp: Clamp | None = None
    shifted: bool = False
    packing: IntegerPacking | None = None
    zeros: int = 0
    any_channels: bool = False

    @property
    def shared(self) -> "WeightRewrite":
        """What this one and others alike have a kernel for together: itself, or of 1×1 convolutions an example.

        The code for a 1×1 kernel depends on the numbers of channels by what is true of them alone: whether rows fill
        vectors, lie whole pages apart, and are worth a second thread. A network has such weights in many shapes.
        """
        outputs, inputs, *kernel = self.shape
        every_value = self.columns in (0, inputs) and self.run == 1
        if not (self.packed and math.prod(kernel) == 1 and inputs % LANES == 0 and every_value and self.zeros == 0):
            return self
        row = _PAGE_BYTES // VALUE_BYTES if _rows_share_a_place(inputs) else LANES
        least = 1 if outputs * inputs < _PARALLEL_VALUES else -(-_PARALLEL_VALUES // (self.lanes * row))
        shape = (least * self.lanes, row, *kernel)
        return dataclasses.replace(self, shape=shape, columns=min(self.columns, row), any_channels=True)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Of what the kernel writes."""
        outputs, inputs, *kernel = self.shape
        if self.packing is not None:
            return self.packing.shape(outputs)
        if self.tile is not None:
            return (self.tile + 2, self.tile + 2, outputs // self.lanes, inputs, self.lanes)
        if self.packed:
            return ((outputs + self.zeros) // self.lanes, *kernel, inputs, self.lanes)
        return (*kernel, inputs, outputs)

    @property
    def result_types(self) -> list[relax.TensorType]:
        """Of all that the kernel writes."""
        if not self.integers:
            return [relax.TensorType(self.result_shape, DTYPE)]
        of_channels = [relax.TensorType(self.shape[:1], dtype) for dtype in (DTYPE, "int32")]
        bounds = [] if self.clamp is None else [relax.TensorType((3,), DTYPE)]
        return [relax.TensorType(self.result_shape, "int8"), *of_channels, *bounds]


def _rows_share_a_place(values: int) -> bool:
    """Whether rows of so many values are a multiple of a page apart, and so share a place in the cache."""
    return values * VALUE_BYTES % _PAGE_BYTES == 0


def weight_rewrite(rewrite: WeightRewrite, target: tvm.target.Target) -> tirx.PrimFunc:
    """The kernel.

    It takes the weight, float32 of `shape`; where there is a mask `decoding_table` and bits, scale, row_start and
    scale_range as `FoldTaskMask` describes them; with an epsilon the BatchNorm's weight and running variance, float32
    [O]; and writes the result, float32 of `result_shape`: (weight · mask) · (norm_weight / √(variance + ε))[o], of
    which with a `tile` G g Gᵀ is taken. With `integers` it takes the layer's bias too, or what it is `shifted` by, the
    BatchNorm's bias and running mean; and the quantisations of its data and, where there is a clamp, its results; and
    writes what `quantised_layer` does, or without a clamp `quantised_head`.
    """
    _, _, *kernel = rewrite.shape
    outputs, inputs = _channels(rewrite)
    columns = inputs if rewrite.any_channels and rewrite.columns else rewrite.columns
    shape, result_shape = (outputs, inputs, *kernel), rewrite.result_shape
    if rewrite.any_channels:
        result_shape = (quotient(outputs, rewrite.lanes), *kernel, inputs, rewrite.lanes)
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("rewrite_weight")
        T.func_attr(ATTRIBUTES)
        weight = T.arg("weight", T.buffer(shape, DTYPE))
        mask = mask_arguments(outputs, columns, rewrite.coded) if rewrite.columns else None
        norms = () if rewrite.epsilon is None else ("norm_weight", "variance")
        norm = tuple(T.arg(name, T.buffer((outputs,), DTYPE)) for name in norms)
        read = _layer_arguments(rewrite, outputs) if rewrite.integers else {}
        result = T.arg("result", T.buffer(result_shape, "int8" if rewrite.integers else DTYPE))
        integers = None
        if rewrite.integers:
            multipliers = T.arg("multipliers", T.buffer((outputs,), DTYPE))
            biases = T.arg("biases", T.buffer((outputs,), "int32"))
            bounds = None if rewrite.clamp is None else T.arg("bounds", T.buffer((3,), DTYPE))
            integers = IntegerWeights(
                rewrite.integers, has_fused_products(target), rewrite.clamp, **read,
                multipliers=multipliers, biases=biases, bounds=bounds,
            )  # fmt: skip
        with root_block():
            rows = T.decl_buffer((math.prod(shape),), DTYPE, data=weight.data)
            if rewrite.any_channels:
                # Indices inside a weight are 32 bits wide.
                outputs, inputs = (T.bind(T.cast(number, "int32")) for number in (outputs, inputs))
                columns = inputs
            aligned = rewrite.columns % LANES == 0
            permutation, rounds = permutation_of(target), rewrite.rounds
            decoder = decoder_of(mask, outputs, columns, aligned, permutation, rounds) if mask else None
            store = WeightStore(result, tuple(kernel), rewrite.packed, rewrite.tile)
            _Kernel(rewrite, outputs, inputs, columns, rows, decoder, norm, store, integers).emit()
    return builder.get()


def _layer_arguments(rewrite: WeightRewrite, outputs: Number) -> dict[str, Any]:
    """What is read of a layer that is quantised, by the attributes of `IntegerWeights`."""
    names = ("beta", "mean") if rewrite.shifted else ("bias",)
    shift = tuple(T.arg(name, T.buffer((outputs,), DTYPE)) for name in names)
    data = T.arg("data", T.buffer((2,), DTYPE))
    into = None if rewrite.clamp is None else T.arg("into", T.buffer((2,), DTYPE))
    return {"shift": shift, "data": data, "into": into}


def _channels(rewrite: WeightRewrite) -> tuple[Number, Number]:
    """Output and input channels of the weight."""
    outputs, inputs, *_ = rewrite.shape
    if rewrite.any_channels:
        return tirx.Var("outputs", "int64"), tirx.Var("inputs", "int64")
    return outputs, inputs


_Store = Callable[[ChannelGroup, int, tirx.Expr], None]
"""Stores a vector: of which channels, the how manieth value of a step, and the vector."""


@dataclass(frozen=True)
class _Kernel:
    """What the kernel reads and writes, and the parts of its body, which the methods write.

    Attributes:
        rewrite: what to do.
        outputs, inputs: channels of the weight.
        columns: of the mask.
        weight: as one row behind the other.
        decoder: of the mask, if there is one.
        norm: the BatchNorm's weight and variance, or nothing.
        store: of the result.
        integers: what quantises the weight, if it is quantised.
    """

    rewrite: WeightRewrite
    outputs: Number
    inputs: Number
    columns: Number
    weight: tirx.Var
    decoder: MaskDecoder | None
    norm: tuple[tirx.Var, ...]
    store: WeightStore
    integers: IntegerWeights | None

    @property
    def values(self) -> Number:
        """How many a row of the weight has."""
        return self.inputs * math.prod(self.store.kernel)

    def emit(self) -> None:
        """The loop over tasks: up to 16 output channels that lie together in the result."""
        lanes = self.rewrite.lanes
        tasks = -(-lanes // _LINE)
        count = quotient(self.outputs, lanes) * tasks
        last = None
        if self.rewrite.zeros:
            blocks, left = divmod(int(self.outputs), lanes)
            count = blocks * tasks + -(-left // _LINE)
            last = left % _LINE or None
        small = math.prod(self.rewrite.shape) < _PARALLEL_VALUES
        alone = isinstance(count, int) and count == 1
        with (T.serial if small or alone else T.parallel)(count) as task:
            block = T.bind(tirx.floordiv(task, tasks))
            lane = T.bind(tirx.floormod(task, tasks) * _LINE)
            if last is None:
                self._task_of_block(block, lane)
            elif alone:
                self._task(block, lane, last)
            else:
                with T.If(task < count - 1):
                    with T.Then():
                        self._task_of_block(block, lane)
                    with T.Else():
                        self._task(block, lane, last)
        if self.rewrite.zeros:
            self._fill_up()

    def _task_of_block(self, block: tirx.Expr, lane: tirx.Expr) -> None:
        """A task of a block all of whose channels are the weight's."""
        lanes = self.rewrite.lanes
        rest = lanes % _LINE
        if rest == 0 or lanes < _LINE:
            self._task(block, lane, rest or _LINE)
            return
        with T.If(lane + _LINE <= lanes):
            with T.Then():
                self._task(block, lane, _LINE)
            with T.Else():
                self._task(block, lane, rest)

    def _fill_up(self) -> None:
        """Writes the zeros behind the weight's output channels."""
        lanes, outputs, values = self.rewrite.lanes, int(self.outputs), int(self.values)
        blocks = (outputs + self.rewrite.zeros) // lanes
        rows = T.decl_buffer((blocks * values * lanes,), DTYPE, data=self.store.result.data)
        for block in range(outputs // lanes, blocks):
            first = max(0, outputs - block * lanes)
            missing = lanes - first
            with T.serial(values) as value:
                place = (block * values + value) * lanes + first
                if missing == 1:  # A vector has two values at least.
                    T.buffer_store(rows, T.float32(0), [place])
                else:
                    T.buffer_store(rows, T.broadcast(T.float32(0), missing), [T.ramp(place, 1, missing)])

    def _task(self, block: tirx.Expr, lane: tirx.Expr, channels: int) -> None:
        channel, packing = T.bind(block * self.rewrite.lanes + lane), self.rewrite.packing
        store = self.store if packing is None else self._near(channels)
        groups = [
            ChannelGroup(
                channel + place,
                block,
                lane + place if packing is None else T.int32(place),
                min(LANES, channels - place),
                place,
            )
            for place in range(0, channels, LANES)
        ]
        factors = [self._factor(group) for group in groups]
        if self._suits_rows():
            self._quantised_rows(groups, factors, lane)
            return
        position = self._positions(groups)
        # Where each value has a value of the mask, rows are masked as they are read; else vectors of channels are.
        of_rows = position if self.rewrite.run == 1 else None
        kept = None if self.integers is None or of_rows is None else self._kept_rows()
        mask = None if self.decoder is None or of_rows is not None else self._mask(self.decoder, groups, position)
        prefetch = self._prefetch(groups[0], channels)
        if self.decoder is not None and of_rows is not None and self._suits_neon(channels):
            rows = NeonRows(self.weight, self.values, self.outputs, self.decoder, self.store, prefetch)
            rows.emit(groups[0], channels, [factor for factor in factors if factor is not None])
            return

        def sweep(start: tirx.Expr, count: int, store: _Store, asks: bool = True) -> None:
            if asks:
                prefetch(start)
            ends = of_rows is None and self._ends_with_a_vector(count)
            first, read, before = (start + count - LANES, LANES, LANES - count) if ends else (start, count, 0)
            for group, factor in zip(groups, factors, strict=True):
                if kept is None:
                    rows = [self._row(group, row, first, read, of_rows) for row in range(group.count)]
                else:
                    rows = [T.bind(kept[_kept_place(group, row, first)]) for row in range(group.count)]
                for value, vector in enumerate(transposed(rows)[before : before + count]):
                    if mask is not None:
                        column = tirx.floordiv(start + value, self.rewrite.run)
                        vector = vector * mask[T.ramp(column * _LINE + group.place, 1, LANES)]
                    store(group, value, vector if factor is None else vector * factor)

        if self.integers is not None:
            largest = self.integers.begin()
            if mask is None:
                self._largest_of_rows(groups, factors, largest, of_rows, kept)
            else:
                _in_steps(self.values, LANES, lambda start, count: sweep(start, count, largest.note, asks=False))
            pairs = zip(groups, factors, strict=True)
            biases = [self.integers.bias(_neighbours(group.channel, group.count), factor) for group, factor in pairs]
            self._quantised(self.integers.quantised(groups, biases, largest), sweep, store)
            if packing is not None:
                rows, packed = (
                    T.decl_buffer((math.prod(map(int, buffer.shape)),), "int8", data=buffer.data)
                    for buffer in (store.result, self.store.result)
                )
                vector = block * packing.vectors(self.rewrite.shape[0]) + tirx.floordiv(lane, packing.width)
                packing.pack(rows, packed, vector, channels)
        elif self.rewrite.tile is None:
            _in_steps(self.values, LANES, lambda start, count: sweep(start, count, partial(self.store.store, start)))
        else:
            self._winograd(groups, sweep)

    def _suits_rows(self) -> bool:
        """Whether a weight is quantised row by row (`IntegerRows`): it is packed so, and so is its mask."""
        packing, values = self.rewrite.packing, self.values
        is_masked_so = self.decoder is None or (self.rewrite.run == 1 and self.rewrite.columns == values)
        is_row = math.prod(self.store.kernel) == 1 and isinstance(values, int) and values >= LANES
        return packing is not None and is_masked_so and is_row and packing.in_rows(int(self.inputs))

    def _quantised_rows(self, groups: list[ChannelGroup], factors: list[tirx.Expr | None], lane: tirx.Expr) -> None:
        integers, packing, result = self.integers, self.rewrite.packing, self.store.result
        assert integers is not None and packing is not None
        packed = T.decl_buffer((math.prod(map(int, result.shape)),), "int8", data=result.data)
        rows = IntegerRows(self.weight, int(self.values), self.outputs, self.decoder, integers, packing, packed)
        pairs = zip(groups, factors, strict=True)
        biases = [integers.bias(_neighbours(group.channel, group.count), factor) for group, factor in pairs]
        first = groups[0].block * packing.vectors(self.rewrite.shape[0]) + tirx.floordiv(lane, packing.width)
        rows.emit(groups, factors, biases, first)

    def _largest_of_rows(
        self,
        groups: list[ChannelGroup],
        factors: list[tirx.Expr | None],
        largest: Largest,
        position: tirx.Var | None,
        kept: tirx.Var | None,
    ) -> None:
        """Finds the largest |w| of each of a task's channels, in the rows as they are read, and keeps masked rows.

        Rounding keeps the order of sizes, so that the BatchNorm's factor may come last.
        """
        found = T.alloc_buffer((_LINE * LANES,), DTYPE, scope="local")
        zeros = T.broadcast(T.float32(0), LANES)
        places = [T.ramp(row * LANES, 1, LANES) for row in range(_LINE)]
        for place in places:
            T.buffer_store(found, zeros, [place])

        def step(start: tirx.Expr, count: int) -> None:
            for group in groups:
                for row in range(group.count):
                    masked, place = self._row(group, row, start, count, position), places[group.place + row]
                    if kept is not None:
                        T.buffer_store(kept, masked, [_kept_place(group, row, start)])
                    vector = T.abs(masked)
                    if count < LANES:  # What stands behind the row is another's.
                        vector = T.Select(T.ramp(0, 1, LANES) < T.broadcast(count, LANES), vector, zeros)
                    T.buffer_store(found, T.max(found[place], vector), [place])

        _in_steps(self.values, LANES, step)
        for group, factor in zip(groups, factors, strict=True):
            columns = transposed([found[place] for place in places[group.place : group.place + LANES]])
            vector = functools.reduce(T.max, columns)
            largest.note(group, 0, vector if factor is None else vector * factor)

    def _kept_rows(self) -> tirx.Var:
        """A place for the masked rows of a task, which are wanted twice: see `_kept_place`."""
        return T.alloc_buffer((-(-int(self.values) // LANES) * LANES * _LINE,), DTYPE)

    def _near(self, channels: int) -> WeightStore:
        """A place for the integers of a task's channels, before they are packed."""
        shape = (*self.store.kernel, int(self.inputs), NEAR)
        near = T.alloc_buffer(shape, "int8")
        if channels < NEAR:
            rows = T.decl_buffer((math.prod(shape),), "int8", data=near.data)
            with T.serial(math.prod(shape[:-1])) as row:
                T.buffer_store(rows, T.broadcast(T.int8(0), NEAR), [T.ramp(row * NEAR, 1, NEAR)])
        return WeightStore(near, self.store.kernel, packed=False, tile=None)

    def _quantised(
        self, weights: QuantisedTask, sweep: Callable[[tirx.Expr, int, _Store], None], store: WeightStore
    ) -> None:
        """Sweeps over a task's weights, whose scales are known, for the integers."""

        def step(start: tirx.Expr, count: int) -> None:
            sweep(start, count, partial(weights.store, store, start))

        _in_steps(self.values, LANES, step)
        weights.finish()

    def _suits_neon(self, channels: int) -> bool:
        """Whether a task of so many channels, whose rows are masked as they are read, is one for `NeonRows`."""
        assert self.decoder is not None
        whole = not isinstance(self.values, int) or self.values % LANES == 0
        by_neon = self.decoder.permutation is Permutation.NEON
        return by_neon and self.rewrite.tile is None and self.integers is None and whole and channels % ROWS == 0

    def _ends_with_a_vector(self, count: int) -> bool:
        """Whether a step of so many values, the last of a row, can read a whole vector that ends where the row does.

        LLVM takes one load and one value for an index, many times as long for 8 indices that are no neighbours.
        """
        return count < LANES and isinstance(self.values, int) and self.values >= LANES

    def _winograd(self, groups: list[ChannelGroup], sweep: Callable[[tirx.Expr, int, _Store], None]) -> None:
        """Keeps the values of some kernels of a task's channels near, and writes what becomes of them."""
        near = T.alloc_buffer((KERNEL * LANES, _LINE), DTYPE, scope="local")

        def keep(start: tirx.Expr, group: ChannelGroup, value: int, vector: tirx.Expr) -> None:
            T.buffer_store(near, vector, [start + value, T.ramp(group.place, 1, LANES)])

        def piece(first: tirx.Expr, length: int) -> None:
            _in_steps(length, LANES, lambda start, count: sweep(first + start, count, partial(keep, start)))
            with T.serial(length // KERNEL) as kernel:
                self.store.transform(groups, near, kernel, tirx.floordiv(first, KERNEL) + kernel)

        _in_steps(self.values, KERNEL * LANES, piece)

    def _positions(self, groups: list[ChannelGroup]) -> tirx.Var | None:
        """Where the soft values of each row of a task begin, int32 [16]; None where no rows are decoded."""
        if self.decoder is None or self.rewrite.columns == 1:
            return None
        position = T.alloc_buffer((_LINE,), "int32", scope="local")
        for group in groups:
            for row in range(group.count):
                T.buffer_store(position, self.decoder.row_start[group.channel + row], [group.place + row])
        return position

    def _factor(self, group: ChannelGroup) -> tirx.Expr | None:
        """The BatchNorm's factor of each channel of a group."""
        if not self.norm:
            return None
        index = _neighbours(group.channel, group.count)
        weight, variance = (array[index] for array in self.norm)
        return T.bind(weight / T.sqrt(variance + T.broadcast(T.float32(self.rewrite.epsilon), LANES)))

    def _mask(self, decoder: MaskDecoder, groups: list[ChannelGroup], position: tirx.Var | None) -> tirx.Var:
        """The mask of a task's channels, float32 [columns · 16]: for each column the values of all channels."""
        steps = -(-self.rewrite.columns // LANES)
        mask = T.alloc_buffer((steps * LANES * _LINE,), DTYPE, scope="local")
        if position is None:
            # The bits of a single column are neighbours, and its soft values too.
            for group in groups:
                vector, _ = decoder.decode(group.channel, decoder.row_start[group.channel])
                T.buffer_store(mask, vector, [T.ramp(group.place, 1, LANES)])
            return mask
        with T.serial(steps) as step:
            for group in groups:
                rows = [self._mask_row(decoder, group, row, step * LANES, position) for row in range(group.count)]
                for value, vector in enumerate(transposed(rows)):
                    place = (step * LANES + value) * _LINE + group.place
                    T.buffer_store(mask, vector, [T.ramp(place, 1, LANES)])
        return mask

    def _mask_row(
        self, decoder: MaskDecoder, group: ChannelGroup, row: int, start: tirx.Expr, position: tirx.Var
    ) -> tirx.Expr:
        """The mask of a row from the column `start` on; moves the row's position on."""
        place = group.place + row
        vector, zeros = decoder.decode((group.channel + row) * self.columns + start, position[place])
        T.buffer_store(position, position[place] + zeros, [place])
        return vector

    def _row(self, group: ChannelGroup, row: int, start: tirx.Expr, count: int, position: tirx.Var | None) -> tirx.Expr:
        """Values of a row of the weight from `start` on, masked where a `position` is given."""
        vector = T.bind(self.weight[_neighbours((group.channel + row) * self.values + start, count)])
        if self.decoder is None or position is None:
            return vector
        return T.bind(vector * self._mask_row(self.decoder, group, row, start, position))

    def _prefetch(self, group: ChannelGroup, channels: int) -> Callable[[tirx.Expr], None]:
        """Asks for what the next task reads, a part in each step of this one, and for the lines that steps will write.

        A task reads so many rows of weights and soft values at once, of each so little in a step, that the CPU does not
        see by itself what comes next.
        """
        steps = quotient(self.values + LANES - 1, LANES)
        weights = (group.channel + channels) * self.values
        row = math.prod(self.rewrite.shape[1:])
        # Rows that share a place in the cache would have left it again before they are read.
        weight_lines = 0 if _rows_share_a_place(row) else -(-channels * row // (-(-row // LANES) * _LINE))
        # Of 1×1 kernels in blocks of 8 output channels two values lie in one line of the result.
        writes_lines = self.rewrite.tile is None and self.rewrite.packing is None
        is_pointwise = self.rewrite.packed and math.prod(self.store.kernel) == 1
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
            for value in range(0, LANES if writes_lines else 0, values_of_line):
                place = self.store.place(group, start + _AHEAD * LANES + value)
                T.evaluate(prefetch(self.store.result, place, to_write=True))

        return in_step

    def _following(self, decoder: MaskDecoder, group: ChannelGroup, channels: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Where the next task's soft values begin, and how many cache lines they take."""
        outputs = self.outputs
        following = T.bind(group.channel + channels)
        end = decoder.last + 1

        def start(channel: tirx.Expr) -> tirx.Expr:
            return tirx.min(decoder.row_start[tirx.min(channel, outputs - 1)], end)

        first = T.bind(start(following))
        behind = tirx.Select(following + channels < outputs, start(following + channels), end)
        return first, T.bind(tirx.ceildiv(behind - first, decoder.line))


def _neighbours(first: tirx.Expr, count: int) -> tirx.Expr:
    """Indices of up to 8 neighbours; behind the last of them stands it again."""
    index = T.ramp(first, 1, LANES)
    return index if count == LANES else tirx.min(index, T.broadcast(first + count - 1, LANES))


def _kept_place(group: ChannelGroup, row: int, start: tirx.Expr) -> tirx.Expr:
    """Indices of 8 values of a row that is kept: those of all of a task's rows stand one behind the other."""
    return T.ramp(start * _LINE + (group.place + row) * LANES, 1, LANES)


def _in_steps(length: Number, width: int, body: Callable[[tirx.Expr, int], None]) -> None:
    """A loop in steps of a width and what is left behind it; `body` takes the start and how many.

    Nothing is left of a length that is known when the kernel runs.
    """
    if not isinstance(length, int):
        with T.serial(quotient(length, width)) as step:
            body(step * width, width)
        return
    if length >= width:
        with T.serial(length // width) as step:
            body(step * width, width)
    if length % width:
        body(T.int32(length - length % width), length % width)
