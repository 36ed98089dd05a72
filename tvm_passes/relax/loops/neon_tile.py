"""A tile of a loop nest for arm64: which registers it loads and stores, and pointers that reach them."""

from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars

REGISTER = "float32x4"
_REGISTER_BYTES, _VALUE_BYTES = 16, 4


@dataclass(frozen=True)
class Buffers:
    """Of a function: those that it has for itself, those that it loads from, and those that it stores to."""

    allocated: Sequence[tirx.Var]
    loaded: Sequence[tirx.Var]
    stored: Sequence[tirx.Var]


@dataclass(frozen=True)
class Reach:
    """Bytes that an instruction loads from at most before an address, and behind it, and what they are multiples of."""

    before: int
    behind: int
    multiple: int = 1


class Tile:
    """A tile, which is the body of a loop that has no other inside it.

    Attributes:
        loop: around it.
        loads: of it.
        results: what it stores to buffers that nothing reads.
    """

    def __init__(self, loop: tirx.For, buffers: Buffers, known: Analyzer) -> None:
        self.loop, self._buffers, self._known = loop, buffers, known
        self.loads: list[TensorLoad] = []
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(loop.body, [(TensorLoad, self.loads.append), (tirx.BufferStore, stores.append)])
        self._written = [one.buffer for one in stores]
        kept = [*buffers.allocated, *buffers.loaded]
        self.results = [one for one in stores if not is_among(one.buffer, kept)]
        # What is put before the loop, and before the tile.
        self._before: list[tirx.Stmt] = []
        self._first: list[tirx.Stmt] = []

    def around(self, body: tirx.Stmt) -> tirx.Stmt:
        """The loop around a body that reads what is bound here."""
        loop = self.loop
        tile = tirx.SeqStmt([*self._first, body]) if self._first else body
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tile, loop.thread_binding, None, loop.step)
        return tirx.SeqStmt([*self._before, whole]) if self._before else whole

    def writes(self, buffer: tirx.Var) -> bool:
        """Whether it stores to a buffer."""
        return is_among(buffer, self._written)

    def sources(self) -> list[tirx.Var]:
        """What it loads from and does not write, each once."""
        return [one for one in each_once([load.source for load in self.loads]) if not self.writes(one)]

    def pointers(
        self, source: tirx.Var, start: tirx.Expr, offsets: Sequence[int], reach: Reach, least: int = 1
    ) -> dict[int, tuple[tirx.Var, int]]:
        """Pointers for the offsets behind an index: of each the pointer that reaches it, and how far from there it is.

        Args:
            source: the buffer.
            start: the index.
            offsets: in bytes, ascending.
            reach: of the instruction.
            least: offsets that are worth a pointer.
        """
        found: dict[int, tuple[tirx.Var, int]] = {}
        while offsets:
            near = [offset for offset in offsets if offset <= offsets[0] + reach.before + reach.behind]
            offsets = offsets[len(near) :]
            if len(near) >= least:
                middle = near[0] + max(0, near[-1] - near[0] - reach.behind)
                place = self._place(source, start, middle)
                found |= {offset: (place, offset - middle) for offset in near}
        return found

    def _place(self, source: tirx.Var, start: tirx.Expr, offset: int) -> tirx.Var:
        """A pointer that is a number of bytes behind an index."""
        if is_among(source, self._buffers.stored):
            base = self.before("written", tirx.call_extern("handle", "neon_written", source.ptr_to([0])))
        else:
            base = source.ptr_to([0])
        address = tirx.handle_add_byte_offset(base, start.astype("int64") * index_bytes(source) + offset)
        if not self._moves(start):
            return self.before("place", tirx.call_extern("handle", "neon_place", address, tirx.const(0, "int32")))
        step = self.loop.loop_var.astype("int32")
        return self.first("place", tirx.call_extern("handle", "neon_place", address, step))

    def pointer_to(self, one: TensorLoad | tirx.BufferStore, name: str) -> tirx.Var:
        """A pointer to the first value of a register."""
        buffer = buffer_of(one)
        return self.first(name, _behind(buffer, self.index(one)))

    def before(self, name: str, value: tirx.Expr) -> tirx.Var:
        """A value that is bound before the loop."""
        return _bound(self._before, name, value)

    def first(self, name: str, value: tirx.Expr) -> tirx.Var:
        """A value that is bound before the tile."""
        return _bound(self._first, name, value)

    def changes(self, load: TensorLoad) -> bool:
        """Whether each tile loads another value."""
        return self._moves(self.index(load))

    def _moves(self, index: tirx.Expr) -> bool:
        return any(self.loop.loop_var.same_as(one) for one in undefined_vars(index, []))

    def index(self, one: TensorLoad | tirx.BufferStore) -> tirx.Expr:
        """Of the first value of a register, in terms of loops."""
        (index,) = one.indices
        return self._known.simplify(index.base if isinstance(index, tirx.Ramp) else index)

    def offset(self, one: TensorLoad | tirx.BufferStore, start: tirx.Expr) -> int | None:
        """Bytes behind an index of the same buffer; None if they differ from tile to tile."""
        distance = self._known.simplify(self.index(one) - start)
        return int(distance) * index_bytes(buffer_of(one)) if isinstance(distance, tirx.IntImm) else None

    def distance(self, one: TensorLoad | tirx.BufferStore, buffer: tirx.Var, start: tirx.Expr) -> int:
        """Bytes behind an index of a buffer.

        Raises:
            ValueError: it is of another buffer, or they differ from tile to tile.
        """
        offset = self.offset(one, start) if buffer_of(one).same_as(buffer) else None
        if offset is None:
            raise ValueError(f"{one} is no neighbour of the others")
        return offset


def buffer_of(one: TensorLoad | tirx.BufferStore) -> tirx.Var:
    """What it loads from or stores to."""
    return one.source if isinstance(one, TensorLoad) else one.buffer


def index_bytes(buffer: tirx.Var) -> int:
    """From one index of a buffer to the next."""
    return _REGISTER_BYTES if str(buffer.dtype) == REGISTER else _VALUE_BYTES


def loads_of(value: tirx.Expr) -> list[TensorLoad]:
    """All of an expression."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(value, (TensorLoad, found.append))
    return found


def is_register(value: tirx.Expr) -> bool:
    """Whether it is four neighbouring float32."""
    if str(value.ty.dtype) != REGISTER:
        return False
    if not isinstance(value, TensorLoad):
        return True
    index = value.indices[-1]
    return not isinstance(index, tirx.Ramp) or int(index.stride) == 1


def is_among(buffer: tirx.Var, buffers: Sequence[tirx.Var]) -> bool:
    """Whether it is one of them."""
    return any(one.same_as(buffer) for one in buffers)


def each_once(buffers: Sequence[tirx.Var]) -> list[tirx.Var]:
    """Them without repetitions, in their order."""
    found: list[tirx.Var] = []
    for buffer in buffers:
        if not is_among(buffer, found):
            found.append(buffer)
    return found


def has(kind: type[tirx.Stmt], body: tirx.Stmt) -> bool:
    """Whether a statement of a kind is in another."""
    found: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(body, (kind, found.append))
    return bool(found)


def _behind(buffer: tirx.Var, index: tirx.Expr) -> tirx.Expr:
    return tirx.handle_add_byte_offset(buffer.ptr_to([0]), index.astype("int64") * index_bytes(buffer))


def _bound(statements: list[tirx.Stmt], name: str, value: tirx.Expr) -> tirx.Var:
    variable = tirx.Var(name, REGISTER if str(value.ty).startswith("float") else "handle")
    statements.append(tirx.Bind(variable, value))
    return variable
