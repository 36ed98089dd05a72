"""The innermost loops of scheduled operators, and how often they run: read where their loops become machine code.

Bodies that are unrolled stand there written out, tiles that run over the end are split off, all extents are numbers.
"""

import collections
import dataclasses
import math
import operator
from dataclasses import dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import TensorLoad
from tvm.ir.instrument import pass_instrument
from tvm.target.codegen import llvm_lookup_intrinsic_id
from tvm_ffi import StructuralKey

_BITS = 128  # Of a register.
_LANES = 4  # Of float32 in one.
_INTEGER_PRODUCTS = {llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{name}") for name in ("sdot", "smmla")}
_ORDERED_PRODUCT = "neon_ordered_product"
# What conditions of tiles are made of.
_OPERATIONS = {
    tirx.Add: operator.add,
    tirx.Sub: operator.sub,
    tirx.Mul: operator.mul,
    tirx.FloorDiv: operator.floordiv,
    tirx.FloorMod: operator.mod,
    tirx.LT: operator.lt,
    tirx.LE: operator.le,
    tirx.EQ: operator.eq,
    tirx.And: operator.and_,
}


@dataclass(frozen=True)
class ScheduledLoop:
    """A loop that has no other inside it, or what stands beside loops.

    Attributes:
        extents: of the loops around it, the outermost first, and of itself.
        products: different multiplications of a step, in whole registers: a scalar counts a quarter.
        moved: whole registers that a step reads and writes, as it is written: LLVM keeps some and reads them no more.
        taken: in which share of the steps of the loops around it it runs, where there are conditions.
        sums: whether its products are added to sums: multiply-adds, as many as products.
    """

    extents: tuple[int, ...]
    products: float
    moved: float
    taken: float = 1
    sums: bool = True

    @property
    def steps(self) -> float:
        """How often it runs in all."""
        return math.prod(self.extents) * self.taken


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
    _read(tvm_ffi.structural_map(function.body, (tirx.Select, _selected)), _Place({}, {}, 1), found)
    return found


def _selected(selection: tirx.Select) -> tirx.Expr:
    """What a selection by a number selects: of the rows of Winograd's matrices one."""
    number = selection.condition.value if isinstance(selection.condition, tirx.Broadcast) else selection.condition
    if not isinstance(number, tirx.IntImm):
        return selection
    return selection.true_value if number.value else selection.false_value


@dataclass(frozen=True)
class _Place:
    """Where a statement stands: the extents of the `loops` around it, `values` that are bound there, `taken` of it."""

    loops: dict[tirx.Var, int]
    values: dict[tirx.Var, tirx.Expr]
    taken: float


def _read(statement: tirx.Stmt, place: _Place, found: list[ScheduledLoop]) -> None:
    """Notes the innermost loops of a statement, itself included."""
    moved, sums = 0.0, False
    products: dict[StructuralKey, float] = {}
    nested: list[tuple[tirx.Stmt, _Place]] = []

    def loop(one: tirx.For) -> tvm_ffi.WalkResult:
        loops = {**place.loops, one.loop_var: int(one.extent)}
        nested.append((one.body, dataclasses.replace(place, loops=loops)))
        return tvm_ffi.WalkResult.SKIP

    def branch(one: tirx.IfThenElse) -> tvm_ffi.WalkResult | None:
        if one.else_case is None:  # Of a single value, or a check of arguments.
            return None
        share = _share(one.condition, place)
        nested.append((one.then_case, dataclasses.replace(place, taken=place.taken * share)))
        nested.append((one.else_case, dataclasses.replace(place, taken=place.taken * (1 - share))))
        return tvm_ffi.WalkResult.SKIP

    def bind(one: tirx.Bind) -> None:
        place.values[one.var] = one.value

    def product(one: tirx.Mul) -> None:
        # Of equal ones LLVM computes one: Winograd's rows for all columns of a tile.
        if str(one.ty.dtype).startswith("float32"):
            products[StructuralKey(one)] = _lanes(one) / _LANES

    def intrinsic(one: tvm.ir.Call) -> None:
        nonlocal sums
        if one.op == tvm.ir.Op.get("tirx.call_llvm_pure_intrin") and int(one.args[0]) in _INTEGER_PRODUCTS:
            products[StructuralKey(one)] = 1
            sums = True
        if one.op == tvm.ir.Op.get("tirx.call_extern") and str(one.args[0].value).startswith(_ORDERED_PRODUCT):
            products[StructuralKey(one)] = 1
            sums = True

    def move(one: TensorLoad | tirx.BufferStore) -> None:
        nonlocal moved, sums
        moved += _registers(one.value if isinstance(one, tirx.BufferStore) else one)
        sums = sums or (isinstance(one, tirx.BufferStore) and _adds(one))

    callbacks = [
        (tirx.For, loop),
        (tirx.IfThenElse, branch),
        (tirx.Bind, bind),
        (tirx.Mul, product),
        (tvm.ir.Call, intrinsic),
        ((TensorLoad, tirx.BufferStore), move),
    ]
    tvm_ffi.structural_walk(statement, callbacks, order="pre")
    if products or moved:
        extents, total = tuple(place.loops.values()), sum(products.values())
        found.append(ScheduledLoop(extents, total, moved, place.taken, sums))
    for one, where in nested:
        _read(one, where, found)


def _adds(store: tirx.BufferStore) -> bool:
    """Whether what is stored is a sum of what lay there."""
    added = (store.value.a, store.value.b) if isinstance(store.value, tirx.Add) else ()
    loads = [one for one in added if isinstance(one, TensorLoad) and one.source.same_as(store.buffer)]
    return any(tvm_ffi.structural_equal(one.indices, store.indices) for one in loads)


def _share(condition: tirx.Expr, place: _Place) -> float:
    """In which share of the steps of the loops around it a condition is met."""
    axes = {variable: axis for axis, variable in enumerate(place.loops)}

    def value(one: tirx.Expr) -> np.ndarray | int:
        if isinstance(one, tirx.IntImm):
            return int(one)
        if isinstance(one, tirx.Var):
            if one in place.values:
                return value(place.values[one])
            shape = [-1 if axis == axes[one] else 1 for axis in range(len(axes))]
            return np.arange(place.loops[one]).reshape(shape)
        return _OPERATIONS[type(one)](value(one.a), value(one.b))

    return float(np.mean(value(condition)))


def _lanes(value: tirx.Expr) -> int:
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def _registers(value: tirx.Expr) -> float:
    dtype = tvm.DataType(str(value.ty.dtype))
    return int(dtype.lanes * dtype.bits) / _BITS
