"""Tiles of dense layers, whose sums are in memory between tiles, in an order of ours.

Each weight is read once, so there is a load for each product, and an in-order core wants them side by side. Rows of
weights lie far apart: the address of each is the one before and so many bytes, and one is in a register at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer

from tvm_passes.relax.loops.in_order_core import Instruction
from tvm_passes.relax.loops.neon_steps import NEAR, Loads, Steps
from tvm_passes.relax.loops.neon_tile import REGISTER, Buffers, Tile, is_register

_REGISTERS = 31  # One is left to LLVM.
_LANES, _VALUE_BYTES = 4, 4
_REACHED = 240  # Bytes behind an address, by `ldur`.


@dataclass(frozen=True)
class _Product:
    """Of a number of the input and weights, added to what lies at a place."""

    store: tirx.BufferStore
    number: int
    input: tirx.Var
    weight: TensorLoad


def ordered_lanes(loop: tirx.For, buffers: Buffers, known: Analyzer) -> tirx.Stmt | None:
    """A tile's loop with its instructions in order; None if it computes something else, or in too many registers.

    Args:
        loop: around the tile.
        buffers: of the function.
        known: what is bound in it.
    """
    body = loop.body
    if not isinstance(body, tirx.SeqStmt):
        return None
    values = [one for one in body.seq if isinstance(one, tirx.Bind)]
    found = [one if _asks_ahead(one) else _product(one) for one in body.seq if not isinstance(one, tirx.Bind)]
    if None in found or not any(isinstance(one, _Product) for one in found):
        return None
    try:
        return _written(Tile(loop, buffers, known), values, found)
    except ValueError:
        return None


def _asks_ahead(one: tirx.Stmt) -> bool:
    """Whether it has a cache line brought near, which may stand anywhere in a tile."""
    return isinstance(one, tirx.Evaluate) and isinstance(one.value, tvm.ir.Call) and "prefetch" in str(one.value)


def _product(store: tirx.Stmt) -> _Product | None:
    """What a statement adds to a sum; None if it is something else."""
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
        return None
    sum_, product = store.value.a, store.value.b
    if not (_is_load(sum_) and sum_.source.same_as(store.buffer) and isinstance(product, tirx.Mul)):
        return None
    data, weight = product.a, product.b
    if not (isinstance(data, tirx.Broadcast) and isinstance(data.value, TensorLoad) and _is_load(weight)):
        return None
    (index,) = data.value.indices
    if not isinstance(index, tirx.IntImm) or str(data.value.source.dtype) != "float32":
        return None
    return _Product(store, int(index), data.value.source, weight)


def _is_load(value: tirx.Expr) -> bool:
    return isinstance(value, TensorLoad) and is_register(value)


def _written(
    tile: Tile, values: Sequence[tirx.Bind], found: Sequence[_Product | tirx.Evaluate | None]
) -> tirx.Stmt | None:
    steps, products = Steps(), [one for one in found if isinstance(one, _Product)]
    sums = Loads(tile, [one.store.value.a for one in products], *NEAR)
    inputs = _inputs(tile, products)
    weight = products[0].weight
    start = tile.index(weight)
    address, at = tile.pointer_to(weight, "weights"), 0
    read: dict[int, tirx.Var] = {}
    for product in found:
        if isinstance(product, tirx.Evaluate):
            steps.note(product)
        if not isinstance(product, _Product):
            continue
        offset = sums.offset(product.store)
        if offset not in read:
            read[offset] = steps.add(Instruction.LOAD, "sum", sums.call(offset))
        behind = tile.distance(product.weight, weight.source, start)
        if not 0 <= behind - at <= _REACHED:
            following = tirx.call_extern("handle", "neon_ordered_address", address, tirx.const(behind - at, "int64"))
            address, at = steps.add(Instruction.ADDRESS, "weights", following, address), behind
        load = tirx.call_extern(REGISTER, "neon_ordered_load", address, tirx.const(behind - at, "int32"))
        loaded = steps.add(Instruction.LOAD, "weight", load, address)
        function = f"neon_ordered_product_{product.number % _LANES}"
        factors = read[offset], loaded, inputs[product.number // _LANES]
        read[offset] = steps.add(Instruction.PRODUCT, "sum", tirx.call_extern(REGISTER, function, *factors), *factors)
    for offset, last in read.items():
        steps.store("neon_ordered_store_at", last, *sums.place(offset), read=[last])
    statements = steps.in_order(_REGISTERS - len(inputs))
    if statements is None:
        return None
    # Others read the sums: what is stored is behind this for them.
    after = tirx.Evaluate(tirx.call_extern("handle", "neon_written", products[0].store.buffer.ptr_to([0])))
    return tirx.SeqStmt([tile.around(tirx.SeqStmt([*values, *statements])), after])


def _inputs(tile: Tile, products: list[_Product]) -> dict[int, tirx.Var]:
    """Registers of four inputs, which are there before the loop."""
    source = products[0].input
    if not all(one.input.same_as(source) for one in products):
        raise ValueError("inputs are of several buffers")
    numbers = sorted({one.number // _LANES for one in products})
    if len({one.number for one in products}) < _LANES * len(numbers):
        raise ValueError("not all of the last four inputs are multiplied, and memory may end behind those that are")
    place = tile.before("inputs", tirx.call_extern("handle", "neon_written", source.ptr_to([0])))
    bytes_ = [tirx.const(number * _LANES * _VALUE_BYTES, "int32") for number in numbers]
    loads = [tirx.call_extern(REGISTER, "neon_ordered_load", place, one) for one in bytes_]
    return {number: tile.before("inputs", load) for number, load in zip(numbers, loads, strict=True)}
