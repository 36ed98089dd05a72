"""A tile's instructions in an order of ours: LLVM has one order for all cores of a target, and a core in order another.

What a tile computes: sums that begin with a bias or a number, products that are added to them, in the order of the data
that they load, so that few registers hold it, and minima and maxima of the sums, which are stored.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer

from tvm_passes.relax.loops.in_order_core import Instruction
from tvm_passes.relax.loops.neon_steps import FAR, NEAR, Loads, Steps
from tvm_passes.relax.loops.neon_tile import REGISTER, Buffers, Tile, is_register, loads_of

_REGISTERS = 32
_COMPUTING = 6  # Of them are left to LLVM where it computes results from sums; otherwise one is.
# Weights that stay in registers from tile to tile: all of a 3×3 window. Of larger ones some, as an out-of-order core
# wants, or none, if registers are too few.
_KEPT = (9, 0)
_BOUNDS = {tirx.Min: "neon_ordered_minimum", tirx.Max: "neon_ordered_maximum"}


@dataclass(frozen=True)
class _Product:
    """Of data and a weight, which is added to a sum."""

    sum: int
    data: TensorLoad
    weight: TensorLoad


@dataclass(frozen=True)
class _Result:
    """What is stored: a value that LLVM computes from a sum, or the sum itself, between bounds, the innermost first."""

    sum: int
    value: tirx.Expr
    bounds: Sequence[tuple[str, float]]
    store: tirx.BufferStore


@dataclass(frozen=True)
class _Computed:
    """What a tile computes: values that its indices are made of, what sums begin with, products and results."""

    values: list[tirx.Bind]
    begun: dict[int, TensorLoad | float]
    products: list[_Product]
    results: list[_Result]


def ordered(loop: tirx.For, buffers: Buffers, known: Analyzer) -> tirx.Stmt | None:
    """A tile's loop with its instructions in order; None if it computes something else, or in too many registers.

    Args:
        loop: around the tile.
        buffers: of the function.
        known: what is bound in it.
    """
    for kept in _KEPT:
        tile = Tile(loop, buffers, known)
        computed = _read(tile)
        if computed is None:
            return None
        try:
            written = _Order(tile, computed, kept).written()
        except ValueError:
            return None
        if written is not None:
            return written
    return None


def _read(tile: Tile) -> _Computed | None:
    """What the tile computes; None if it is something else."""
    body = tile.loop.body
    if not isinstance(body, tirx.SeqStmt) or not tile.results:
        return None
    computed = _Computed([], {}, [], [])
    for one in body.seq:
        if isinstance(one, tirx.Bind):
            computed.values.append(one)
        elif not isinstance(one, tirx.BufferStore) or not _note(computed, one, tile):
            return None
    sums = computed.begun.keys()
    each_once = len(computed.results) == len(sums) and {one.sum for one in computed.results} == sums
    return computed if each_once and {one.sum for one in computed.products} == sums else None


def _note(computed: _Computed, store: tirx.BufferStore, tile: Tile) -> bool:
    """Whether a statement is one of those."""
    value = store.value
    if not is_register(value):
        return False
    if any(store.same_as(result) for result in tile.results):
        bounds: list[tuple[str, float]] = []
        while (bound := _BOUNDS.get(type(value))) and (number := _number(value.b)) is not None:
            bounds.insert(0, (bound, number))
            value = value.a
        read = {_sum_of(one, tile) for one in loads_of(value) if tile.writes(one.source)}
        if len(read) != 1 or (only := read.pop()) is None:
            return False
        computed.results.append(_Result(only, value, bounds, store))
        return True
    place = _place_of(store.indices)
    if place is None:
        return False
    if isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul):
        data, weight = value.b.a, value.b.b
        if _sum_of(value.a, tile) != place or not (_is_load(data) and _is_load(weight)):
            return False
        computed.products.append(_Product(place, data, weight))
        return place in computed.begun
    start = value if _is_load(value) else _number(value)
    if start is None or place in computed.begun:
        return False
    computed.begun[place] = start
    return True


def _number(value: tirx.Expr) -> float | None:
    """Of a register whose values are one number."""
    if isinstance(value, tirx.Broadcast) and isinstance(value.value, tirx.FloatImm):
        return float(value.value.value)
    return None


def _is_load(value: tirx.Expr) -> bool:
    return isinstance(value, TensorLoad) and is_register(value)


def _sum_of(value: tirx.Expr, tile: Tile) -> int | None:
    """The sum that a value is."""
    if not isinstance(value, TensorLoad) or not tile.writes(value.source):
        return None
    return _place_of(value.indices)


def _place_of(indices: Sequence[tirx.Expr]) -> int | None:
    return int(indices[0]) if len(indices) == 1 and isinstance(indices[0], tirx.IntImm) else None


class _Order:
    """The steps of a tile in the order of its data, and the statement of each."""

    def __init__(self, tile: Tile, computed: _Computed, most_kept: int) -> None:
        products = computed.products
        self._tile, self._computed = tile, computed
        self._data = Loads(tile, [one.data for one in products], *NEAR)
        self._weights = Loads(tile, [one.weight for one in products], *FAR)
        starts = [one for one in computed.begun.values() if isinstance(one, TensorLoad)]
        self._biases = Loads(tile, starts, *NEAR) if starts else None
        # Of more than can be kept those that are kept are spread over the window, and so are loads of the others.
        weights = sorted(set(self._weights.offsets))
        kept = 0 if tile.changes(products[0].weight) else min(most_kept, len(weights))
        self._keeps = {weights[number * len(weights) // kept] for number in range(kept)}
        self._steps = Steps()
        # What is in registers before the tile, and what it loaded, by number, and by offset.
        self._numbers: dict[float, tirx.Var] = {}
        self._kept: dict[int, tirx.Var] = {}
        self._loaded: dict[tuple[str, int], tirx.Var] = {}
        self._sums: dict[int, tirx.Var] = {}
        self._address: tuple[tirx.Var, tirx.BufferStore] | None = None

    def written(self) -> tirx.Stmt | None:
        """The loop; None if registers are too few."""
        left = Counter(one.sum for one in self._computed.products)
        results = {one.sum: one for one in self._computed.results}
        products = zip(self._data.offsets, self._computed.products, self._weights.offsets, strict=True)
        for data, product, weight in sorted(products, key=lambda one: one[0]):
            self._add(product.sum, data, weight)
            left[product.sum] -= 1
            if not left[product.sum]:
                self._finish(results[product.sum])
        of_sums = all(isinstance(one.value, TensorLoad) for one in self._computed.results)
        left_to_llvm = 1 if of_sums else _COMPUTING
        statements = self._steps.in_order(_REGISTERS - left_to_llvm - len(self._kept) - len(self._numbers))
        if statements is None:
            return None
        return self._tile.around(tirx.SeqStmt([*self._computed.values, *statements]))

    def _add(self, sum_: int, data: int, weight: int) -> None:
        """Adds a product of what lies there."""
        loaded = self._load("data", self._data, data)
        if weight not in self._keeps:
            factor = self._load("weight", self._weights, weight)
        elif weight in self._kept:
            factor = self._kept[weight]
        else:
            factor = self._kept[weight] = self._tile.before("weight", self._weights.call(weight))
        if sum_ not in self._sums:
            self._begin(sum_)
        self._compute(Instruction.PRODUCT, sum_, "neon_ordered_product", loaded, factor)

    def _begin(self, sum_: int) -> None:
        start = self._computed.begun[sum_]
        if isinstance(start, TensorLoad) and self._biases is not None:
            self._sums[sum_] = self._steps.add(Instruction.LOAD, "sum", self._biases.call(self._biases.offset(start)))
        elif isinstance(start, float):
            self._sums[sum_] = self._number(start)

    def _load(self, name: str, loads: Loads, offset: int) -> tirx.Var:
        if (name, offset) not in self._loaded:
            self._loaded[name, offset] = self._steps.add(Instruction.LOAD, name, loads.call(offset))
        return self._loaded[name, offset]

    def _finish(self, result: _Result) -> None:
        """Stores a result: each address is the one before and so many bytes."""
        address = self._next_address(result.store)
        is_sum = isinstance(result.value, TensorLoad)
        if is_sum:
            for function, number in result.bounds:
                self._compute(Instruction.BOUND, result.sum, function, self._number(number))
        last = self._sums[result.sum]

        def replaced(load: TensorLoad) -> tirx.Expr:
            return last if self._tile.writes(load.source) else load

        value = last if is_sum else tvm_ffi.structural_map(result.store.value, (TensorLoad, replaced))
        self._steps.store("neon_ordered_store", value, address, read=[address, last])

    def _next_address(self, store: tirx.BufferStore) -> tirx.Var:
        if self._address is None:
            address = self._tile.pointer_to(store, "result")
        else:
            before, last = self._address
            distance = self._tile.distance(store, last.buffer, self._tile.index(last))
            following = tirx.call_extern("handle", "neon_ordered_address", before, tirx.const(distance, "int64"))
            address = self._steps.add(Instruction.ADDRESS, "result", following, before)
        self._address = address, store
        return address

    def _compute(self, instruction: Instruction, sum_: int, function: str, *values: tirx.Var) -> None:
        read = self._sums[sum_], *values
        self._sums[sum_] = self._steps.add(instruction, "sum", tirx.call_extern(REGISTER, function, *read), *read)

    def _number(self, number: float) -> tirx.Var:
        if number not in self._numbers:
            value = tirx.call_extern(REGISTER, "neon_kept", tirx.Broadcast(tirx.const(number, "float32"), 4))
            self._numbers[number] = self._tile.before("number", value)
        return self._numbers[number]
