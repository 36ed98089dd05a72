"""Moves of whole registers that LLVM does not choose: `ldur` for what tiles read, `ld1` for a bias, `st1` for results.

By the table of Neoverse-N1, which is taken for the Cortex-A76, `ldr` of a register is two micro-operations of the three
that start in a cycle, and `ldur`, which reaches from 256 bytes before an address to 255 behind it, is one; `str` takes
the units for vectors twice, `st1` once. A bias that is loaded for each sum takes none of these units; a copy does.

A schedule marks loops around its tiles with `move_registers`. Each instruction is a piece of assembly by itself: LLVM
orders them, and chooses their registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.ir.transform import PassContext
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars
from tvm.tirx.transform import prim_func_pass

_ANNOTATION = "move_registers"
_REGISTER = "float32x4"
_REGISTER_BYTES, _VALUE_BYTES = 16, 4
# Bytes from an address to the last register that `ldur` reaches, and to that one from the first it reaches.
_BEHIND, _REACHED = 240, 496

# LLVM must not see what a pointer is made of: it would give loads other addresses, that `ldur` does not reach. Loads of
# what a loop before has written are behind `neon_written`, and so nothing moves them before it. Results are memory that
# is seen nowhere in a function: LLVM keeps weights in registers in spite of stores, and nothing reads results there.
_FUNCTIONS = """
define ptr @neon_written(ptr %place) {
  %same = call ptr asm sideeffect "", "=r,0,~{memory}"(ptr %place)
  ret ptr %same
}
define ptr @neon_place(ptr %place, i32 %step) {
  %same = call ptr asm "", "=r,0,r"(ptr %place, i32 %step) #0
  ret ptr %same
}
define <4 x float> @neon_load(ptr %place, i32 %bytes) {
  %value = call <4 x float> asm "ldur ${0:q}, [$1, $2]", "=w,r,i"(ptr %place, i32 %bytes) #1
  ret <4 x float> %value
}
define <4 x float> @neon_load_again(ptr %place, i32 %number) {
  %value = call <4 x float> asm "ld1 {$0.4s}, [$1]", "=w,r,i"(ptr %place, i32 %number) #1
  ret <4 x float> %value
}
define ptr @neon_store(ptr %place, <4 x float> %value, i64 %bytes) {
  %next = call ptr asm sideeffect "st1 {$2.4s}, [$0], $3", "=r,0,w,r"(ptr %place, <4 x float> %value, i64 %bytes) #2
  ret ptr %next
}
attributes #0 = { nounwind willreturn memory(none) }
attributes #1 = { nounwind willreturn memory(read) }
attributes #2 = { nounwind willreturn memory(inaccessiblemem: readwrite) }
"""


def move_registers(schedule: Schedule, loops: Sequence[LoopRV], in_order: bool) -> None:
    """Has tiles move whole registers by these instructions, on a core with NEON.

    Args:
        schedule: of a function whose results are read by no other statement of it.
        loops: around tiles that are unrolled, behind what copies what they read; one that is left is enough.
        in_order: whether products are in the order of what they load.
    """
    for loop in loops:
        schedule.annotate(loop, _ANNOTATION, int(in_order))


@prim_func_pass(opt_level=0, name="NeonMoves")
class NeonMoves:
    """Puts the instructions in, in lowered functions for arm64."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if none of its loops is marked."""
        target = func.attrs.get("target")
        if target is None or not _is_fast(target) or not _is_marked(func.body):
            return func
        allocated: list[tirx.Var] = []
        loaded: list[tirx.Var] = []
        stored: list[tirx.Var] = []
        known = Analyzer()

        def load(one: TensorLoad) -> None:
            loaded.append(one.source)

        def store(one: tirx.BufferStore) -> None:
            stored.append(one.buffer)

        def allocate(one: tirx.AllocBuffer) -> None:
            allocated.append(one.buffer)

        def bind(one: tirx.Bind) -> None:
            # In the order of the statements: those that a value is computed from come first.
            if isinstance(one.value.ty, tvm.ir.PrimType) and not isinstance(one.value, tvm.ir.Call):
                known.bind(one.var, known.simplify(one.value))

        found = [(tirx.AllocBuffer, allocate), (tirx.Bind, bind), (TensorLoad, load), (tirx.BufferStore, store)]
        tvm_ffi.structural_walk(func.body, found)
        buffers = _Buffers(allocated, _each_once(loaded), _each_once(stored))

        def moving(loop: tirx.For) -> tirx.Stmt:
            if _ANNOTATION not in loop.annotations or _has(tirx.For, loop.body):
                return loop
            return _Tile(loop, buffers, known).moving()

        body = tvm_ffi.structural_map(func.body, (tirx.For, moving))
        return func.with_body(tirx.AttrStmt(0, "pragma_import_llvm", tvm.ir.StringImm(_FUNCTIONS), body))


def _is_marked(body: tirx.Stmt) -> bool:
    marked: list[bool] = []
    tvm_ffi.structural_walk(body, (tirx.For, lambda loop: marked.append(_ANNOTATION in loop.annotations)))
    return any(marked)


def _is_fast(target: tvm.target.Target) -> bool:
    """Whether code is for a Cortex-A76, and for no slow cores beside it, for which these instructions are slow."""
    cores, features = str(target.attrs.get("mcpu", "")), [str(one) for one in target.attrs.get("mattr", ())]
    return cores in ("cortex-a76", "neoverse-n1") and "+slow-paired-128" not in features


@dataclass(frozen=True)
class _Buffers:
    """Of a function: those that it has for itself, those that it loads from, and those that it stores to."""

    allocated: Sequence[tirx.Var]
    loaded: Sequence[tirx.Var]
    stored: Sequence[tirx.Var]


class _Tile:
    """A tile, which is the body of a loop that has no other inside it."""

    def __init__(self, loop: tirx.For, buffers: _Buffers, known: Analyzer) -> None:
        self._loop, self._buffers, self._known = loop, buffers, known
        self._in_order = bool(int(loop.annotations[_ANNOTATION]))
        self._loads: list[TensorLoad] = []
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(loop.body, [(TensorLoad, self._loads.append), (tirx.BufferStore, stores.append)])
        self._written = [one.buffer for one in stores]
        kept = [*buffers.allocated, *buffers.loaded]
        self._results = [one for one in stores if not _among(one.buffer, kept)]
        # What is put before the loop, and before the tile.
        self._before: list[tirx.Stmt] = []
        self._first: list[tirx.Stmt] = []

    def moving(self) -> tirx.Stmt:
        """The loop, with the instructions."""
        body = self._loop.body
        for source in _each_once([one.source for one in self._loads]):
            if not _among(source, self._written):
                body = self._loading(body, source)
        body = self._repeating(self._storing(body))
        loop = self._loop
        tile = tirx.SeqStmt([*self._first, body]) if self._first else body
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tile, loop.thread_binding, None, loop.step)
        return tirx.SeqStmt([*self._before, whole]) if self._before else whole

    def _loading(self, body: tirx.Stmt, source: tirx.Var) -> tirx.Stmt:
        """With the loads of a buffer that are another's neighbours, and change from tile to tile, as `ldur`."""
        loads = [one for one in self._loads if one.source.same_as(source) and _is_register(one)]
        if not loads or not self._changes(loads[0]):
            return body
        start = self._index(loads[0])
        offsets = sorted({offset for one in loads if (offset := self._offset(one, start)) is not None})
        places: dict[int, tuple[tirx.Var, int]] = {}
        while offsets:
            near = [offset for offset in offsets if offset <= offsets[0] + _REACHED]
            offsets = offsets[len(near) :]
            if len(near) > 1:
                middle = near[0] + max(0, near[-1] - near[0] - _BEHIND)
                place = self._place(source, start, middle)
                places |= {offset: (place, offset - middle) for offset in near}

        def load(one: TensorLoad) -> tirx.Expr:
            offset = self._offset(one, start) if one.source.same_as(source) and _is_register(one) else None
            if offset not in places:
                return one
            place, rest = places[offset]
            return tirx.call_extern(_REGISTER, "neon_load", place, tirx.const(rest, "int32"))

        return tvm_ffi.structural_map(self._by_loads(body, source, start), (TensorLoad, load))

    def _by_loads(self, body: tirx.Stmt, source: tirx.Var, start: tirx.Expr) -> tirx.Stmt:
        """With products in the order of what they load, which few registers hold then; each sum adds in its own."""
        if not self._in_order or not isinstance(body, tirx.SeqStmt):
            return body
        values = [one for one in body.seq if isinstance(one, tirx.Bind)]
        stores = [one for one in body.seq if isinstance(one, tirx.BufferStore)]
        places = [self._product_offset(one, source, start) for one in stores]
        products = [number for number, place in enumerate(places) if place is not None]
        if not products or len(values) + len(stores) < len(body.seq):
            return body
        first, behind = products[0], products[-1] + 1
        sums = stores[first].buffer
        are_sums = [one.buffer.same_as(sums) for one in stores]
        alone = None not in places[first:behind] and all(are_sums[first:behind]) and not any(are_sums[behind:])
        if not alone or not _at_numbers(sums, stores):
            return body
        when = _when(stores, places, sums)
        return tirx.SeqStmt([*values, *(stores[number] for number in sorted(range(len(stores)), key=when.__getitem__))])

    def _product_offset(self, store: tirx.BufferStore, source: tirx.Var, start: tirx.Expr) -> int | None:
        """Of what is loaded from a buffer and added to a sum; None of what a sum begins with, and of a result."""
        loads = _loads_of(store.value)
        if not any(one.source.same_as(store.buffer) for one in loads):
            return None
        offsets = [self._offset(one, start) for one in loads if one.source.same_as(source)]
        return offsets[0] if offsets else None

    def _place(self, source: tirx.Var, start: tirx.Expr, offset: int) -> tirx.Var:
        """A pointer that is a number of bytes behind an index."""
        if _among(source, self._buffers.stored):
            base = tirx.Var("written", "handle")
            self._before.append(tirx.Bind(base, tirx.call_extern("handle", "neon_written", source.ptr_to([0]))))
        else:
            base = source.ptr_to([0])
        place = tirx.Var("place", "handle")
        address = tirx.handle_add_byte_offset(base, start.astype("int64") * _index_bytes(source) + offset)
        self._first.append(tirx.Bind(place, self._pointer(address)))
        return place

    def _pointer(self, address: tirx.Expr) -> tirx.Expr:
        return tirx.call_extern("handle", "neon_place", address, self._loop.loop_var.astype("int32"))

    def _storing(self, body: tirx.Stmt) -> tirx.Stmt:
        """With the stores of results as `st1`, each of which moves the pointer to the next one."""
        results = self._results
        if not results or len(_each_once([one.buffer for one in results])) > 1 or _has(tirx.IfThenElse, body):
            return body
        if not all(_is_register(one.value) for one in results):
            return body
        start = self._index(results[0])
        offsets = [offset for one in results if (offset := self._offset(one, start)) is not None]
        if len(set(offsets)) < len(results):
            return body
        places = [tirx.Var("result", "handle") for _ in (*results, None)]
        steps = [after - before for before, after in zip(offsets, [*offsets[1:], offsets[-1]], strict=True)]
        first = tirx.handle_add_byte_offset(results[0].buffer.ptr_to([0]), start.astype("int64") * _VALUE_BYTES)
        self._first.append(tirx.Bind(places[0], first))

        def store(one: tirx.BufferStore) -> tirx.Stmt:
            if not one.buffer.same_as(results[0].buffer):
                return one
            number = offsets.index(self._offset(one, start) or 0)
            stored = places[number], one.value, tirx.const(steps[number], "int64")
            return tirx.Bind(places[number + 1], tirx.call_extern("handle", "neon_store", *stored))

        return tvm_ffi.structural_map(body, (tirx.BufferStore, store))

    def _repeating(self, body: tirx.Stmt) -> tirx.Stmt:
        """With sums that begin with the same value of a tensor, each with a load of its own."""
        starts: dict[tirx.Var, tirx.Expr] = {}
        places: dict[tuple[tirx.Var, int], tirx.Var] = {}
        number = 0

        def begin(one: tirx.BufferStore) -> tirx.Stmt:
            nonlocal number
            value = one.value
            if not isinstance(value, TensorLoad) or not _is_register(value) or self._changes(value):
                return one
            if _among(value.source, self._buffers.stored) or _index_bytes(value.source) != _VALUE_BYTES:
                return one
            start = starts.setdefault(value.source, self._index(value))
            offset = self._offset(value, start)
            if offset is None:
                return one
            which = value.source, offset
            if which not in places:
                places[which] = tirx.Var("bias", "handle")
                index = self._index(value).astype("int64")
                address = tirx.handle_add_byte_offset(value.source.ptr_to([0]), index * _index_bytes(value.source))
                self._first.append(tirx.Bind(places[which], self._pointer(address)))
            number += 1
            again = tirx.call_extern(_REGISTER, "neon_load_again", places[which], tirx.const(number, "int32"))
            return tirx.BufferStore(one.buffer, again, one.indices)

        return tvm_ffi.structural_map(body, (tirx.BufferStore, begin))

    def _changes(self, load: TensorLoad) -> bool:
        """Whether each tile loads another value."""
        return any(self._loop.loop_var.same_as(one) for one in undefined_vars(self._index(load), []))

    def _index(self, one: TensorLoad | tirx.BufferStore) -> tirx.Expr:
        """Of the first value of a register, in terms of loops."""
        (index,) = one.indices
        return self._known.simplify(index.base if isinstance(index, tirx.Ramp) else index)

    def _offset(self, one: TensorLoad | tirx.BufferStore, start: tirx.Expr) -> int | None:
        """Bytes behind an index of the same buffer; None if they differ from tile to tile."""
        distance = self._known.simplify(self._index(one) - start)
        return int(distance) * _index_bytes(_buffer_of(one)) if isinstance(distance, tirx.IntImm) else None


def _at_numbers(sums: tirx.Var, stores: Sequence[tirx.BufferStore]) -> bool:
    """Whether all that is stored to and loaded from sums lies at places that are numbers."""
    moves = [*stores, *(load for one in stores for load in _loads_of(one.value))]
    indices = [one.indices for one in moves if _buffer_of(one).same_as(sums)]
    return all(len(one) == 1 and isinstance(one[0], tirx.IntImm) for one in indices)


def _when(stores: Sequence[tirx.BufferStore], places: Sequence[int | None], sums: tirx.Var) -> list[tuple[int, int]]:
    """When a tile's statements come: what a sum begins with before its first product, results behind their last."""
    of_sums: dict[int, list[int]] = {}
    for store, place in zip(stores, places, strict=True):
        if place is not None:
            of_sums.setdefault(int(store.indices[0]), []).append(place)
    when: list[tuple[int, int]] = []
    latest = (-1, 0)
    for store, place in zip(stores, places, strict=True):
        if place is not None:
            when.append((place, 1))
        elif store.buffer.same_as(sums) and int(store.indices[0]) in of_sums:
            when.append((min(of_sums[int(store.indices[0])]), 0))
        else:
            # Results stay in their order.
            read = [int(one.indices[0]) for one in _loads_of(store.value) if one.source.same_as(sums)]
            latest = max([latest, *((max(of_sums[one]), 2) for one in read if one in of_sums)])
            when.append(latest)
    return when


def _buffer_of(one: TensorLoad | tirx.BufferStore) -> tirx.Var:
    return one.source if isinstance(one, TensorLoad) else one.buffer


def _has(kind: type[tirx.Stmt], body: tirx.Stmt) -> bool:
    found: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(body, (kind, found.append))
    return bool(found)


def _loads_of(value: tirx.Expr) -> list[TensorLoad]:
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(value, (TensorLoad, found.append))
    return found


def _is_register(value: tirx.Expr) -> bool:
    """Whether it is four neighbouring float32."""
    if str(value.ty.dtype) != _REGISTER:
        return False
    if not isinstance(value, TensorLoad):
        return True
    index = value.indices[-1]
    return not isinstance(index, tirx.Ramp) or int(index.stride) == 1


def _index_bytes(buffer: tirx.Var) -> int:
    return _REGISTER_BYTES if str(buffer.dtype) == _REGISTER else _VALUE_BYTES


def _among(buffer: tirx.Var, buffers: Sequence[tirx.Var]) -> bool:
    return any(one.same_as(buffer) for one in buffers)


def _each_once(buffers: Sequence[tirx.Var]) -> list[tirx.Var]:
    found: list[tirx.Var] = []
    for buffer in buffers:
        if not _among(buffer, found):
            found.append(buffer)
    return found
