"""The innermost loops of scheduled operators, and how often they run: read where their loops become machine code.

Bodies that are unrolled stand there written out, tiles that run over the end are split off, all extents are numbers.
"""

import collections
import math
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import TensorLoad
from tvm.ir.instrument import pass_instrument

_LANES = 4  # Of float32 in a register.


@dataclass(frozen=True)
class ScheduledLoop:
    """A loop that has no other inside it, or what stands beside loops.

    Attributes:
        extents: of the loops around it, the outermost first, and of itself.
        products: multiply-adds of a step, in whole registers: a scalar counts a quarter.
        moved: whole registers that a step reads and writes, as it is written: LLVM keeps some and reads them no more.
    """

    extents: tuple[int, ...]
    products: float
    moved: float

    @property
    def steps(self) -> int:
        """How often it runs in all."""
        return math.prod(self.extents)


@pass_instrument
class CompileWatch:
    """Sees a network being compiled.

    Attributes:
        loops: each operator as its loops become machine code, by its symbol.
        calls: how often the network's functions call it.
    """

    def __init__(self) -> None:
        self.loops: dict[str, tirx.PrimFunc] = {}
        self.calls: collections.Counter[str] = collections.Counter()

    def run_after_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        """Looks at the module behind the phases `scheduled` and `loops`."""
        if info.name == "loops":
            kernels = {name: one for name, one in module.functions.items() if isinstance(one, tirx.PrimFunc)}
            self.loops.update({str(name.name_hint): one for name, one in kernels.items()})
        if info.name == "scheduled":
            for function in module.functions.values():
                if isinstance(function, relax.Function):
                    relax.analysis.post_order_visit(function, self._count)

    def _count(self, node: relax.Expr) -> None:
        if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get("relax.call_tir"):
            self.calls[str(node.args[0].name_hint)] += 1


def scheduled_loops(function: tirx.PrimFunc) -> list[ScheduledLoop]:
    """The innermost loops of an operator of an inference, and what stands beside loops."""
    found: list[ScheduledLoop] = []
    _read(function.body, (), found)
    return found


@dataclass
class _Body:
    """What a loop has in it: `loops` the next ones, and what stands beside them."""

    loops: list[tirx.For] = field(default_factory=list)
    products: float = 0
    moved: float = 0


def _read(statement: tirx.Stmt, around: tuple[int, ...], found: list[ScheduledLoop]) -> None:
    body = _Body()

    def loop(one: tirx.For) -> tvm_ffi.WalkResult:
        body.loops.append(one)
        return tvm_ffi.WalkResult.SKIP

    def product(one: tirx.Mul) -> None:
        if str(one.ty.dtype).startswith("float32"):
            body.products += _lanes(one) / _LANES

    def move(one: TensorLoad | tirx.BufferStore) -> None:
        body.moved += _lanes(one.value if isinstance(one, tirx.BufferStore) else one) / _LANES

    callbacks = [(tirx.For, loop), (tirx.Mul, product), ((TensorLoad, tirx.BufferStore), move)]
    tvm_ffi.structural_walk(statement, callbacks, order="pre")
    if body.products or body.moved:
        found.append(ScheduledLoop(around, body.products, body.moved))
    for one in body.loops:
        _read(one.body, (*around, int(one.extent)), found)


def _lanes(value: tirx.Expr) -> int:
    return int(tvm.DataType(str(value.ty.dtype)).lanes)
