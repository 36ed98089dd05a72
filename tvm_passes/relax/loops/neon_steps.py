"""Instructions of a tile, noted one by one as statements, and put in order."""

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import TensorLoad

from tvm_passes.relax.loops.in_order_core import Instruction, Step, in_order
from tvm_passes.relax.loops.neon_tile import REGISTER, Reach, Tile

# By the table of Neoverse-N1 `ldur` is one micro-operation, and `ldr`, which reaches further, two.
NEAR = Reach(before=256, behind=240), "neon_ordered_load"
FAR = Reach(before=0, behind=4095 * 16, multiple=16), "neon_ordered_load_far"


class Loads:
    """Registers of a buffer that a tile loads, each by the bytes that it lies behind the first one that was asked for.

    Attributes:
        offsets: of the loads, in their order.

    Raises:
        ValueError: they are of several buffers, lie elsewhere from tile to tile, or where it does not reach.
    """

    def __init__(self, tile: Tile, loads: Sequence[TensorLoad], reach: Reach, function: str) -> None:
        self._tile, self._function = tile, function
        self._source, self._start = loads[0].source, tile.index(loads[0])
        self.offsets = [self.offset(one) for one in loads]
        if any(offset % reach.multiple for offset in self.offsets):
            raise ValueError("an instruction reaches only what lies whole registers apart")
        self._places = tile.pointers(self._source, self._start, sorted(set(self.offsets)), reach)

    def offset(self, load: TensorLoad | tirx.BufferStore) -> int:
        """Of a register."""
        return self._tile.distance(load, self._source, self._start)

    def call(self, offset: int) -> tirx.Expr:
        """What loads a register."""
        return tirx.call_extern(REGISTER, self._function, *self.place(offset))

    def place(self, offset: int) -> tuple[tirx.Var, tirx.Expr]:
        """A pointer, and bytes from there to a register."""
        place, rest = self._places[offset]
        return place, tirx.const(rest, "int32")


class Steps:
    """The instructions of a tile."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._statements: list[tirx.Stmt] = []
        self._written: set[tirx.Var] = set()

    def add(self, instruction: Instruction, name: str, value: tirx.Expr, *read: tirx.Var) -> tirx.Var:
        """Notes one that has a value; returns what the value is bound to."""
        variable = tirx.Var(name, "handle" if instruction is Instruction.ADDRESS else REGISTER)
        self._statements.append(tirx.Bind(variable, value))
        self._steps.append(Step(instruction, self._of_steps(*read), variable))
        self._written.add(variable)
        return variable

    def store(self, function: str, value: tirx.Expr, *place: tirx.Expr, read: Sequence[tirx.Var]) -> None:
        """Notes one that stores a value."""
        self.note(tirx.Evaluate(tirx.call_extern("void", function, place[0], value, *place[1:])), *read)

    def note(self, statement: tirx.Evaluate, *read: tirx.Var) -> None:
        """Notes one that has no value."""
        self._statements.append(statement)
        self._steps.append(Step(Instruction.STORE, self._of_steps(*read)))

    def in_order(self, registers: int) -> list[tirx.Stmt] | None:
        """The statements in order; None if registers are too few."""
        order = in_order(self._steps, registers)
        return None if order is None else [self._statements[number] for number in order]

    def _of_steps(self, *read: tirx.Var) -> tuple[tirx.Var, ...]:
        """Those that are not there before the tile."""
        return tuple(one for one in read if one in self._written)
