"""Moves of whole registers that LLVM does not choose: `ldur` for what tiles read, `ld1` for a bias, `st1` for results.

By the table of Neoverse-N1, which is taken for the Cortex-A76, `ldr` of a register is two micro-operations of the three
that start in a cycle, and `ldur`, which reaches from 256 bytes before an address to 255 behind it, is one; `str` takes
the units for vectors twice, `st1` once. A bias that is loaded for each sum takes none of these units; a copy does.

A schedule marks loops around its tiles with `move_registers`. Each instruction is a piece of assembly by itself: LLVM
chooses their registers, and orders them where `neon_order` does not.
"""

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.ir.transform import PassContext
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.sym import Analyzer
from tvm.tirx.transform import prim_func_pass

from tvm_passes.relax.loops.neon_functions import FUNCTIONS
from tvm_passes.relax.loops.neon_lanes import ordered_lanes
from tvm_passes.relax.loops.neon_order import ordered
from tvm_passes.relax.loops.neon_tile import (
    REGISTER,
    Buffers,
    Reach,
    Tile,
    each_once,
    has,
    is_register,
)

_ANNOTATION = "move_registers"
_LDUR = Reach(before=256, behind=240)


def move_registers(schedule: Schedule, loops: Sequence[LoopRV]) -> None:
    """Has tiles move whole registers by these instructions, on a core with NEON.

    Args:
        schedule: of a function whose results are read by no other statement of it.
        loops: around tiles that are unrolled, behind what copies what they read; one that is left is enough.
    """
    for loop in loops:
        schedule.annotate(loop, _ANNOTATION, 1)


@prim_func_pass(opt_level=0, name="NeonMoves")
class NeonMoves:
    """Puts the instructions in, in lowered functions for arm64."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if none of its loops is marked."""
        target = func.attrs.get("target")
        if target is None or not _has_neon(target) or not _is_marked(func.body):
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
        buffers = Buffers(allocated, each_once(loaded), each_once(stored))

        def moving(loop: tirx.For) -> tirx.Stmt:
            if _ANNOTATION not in loop.annotations or has(tirx.For, loop.body):
                return loop
            for in_order in (ordered, ordered_lanes):
                if (found := in_order(loop, buffers, known)) is not None:
                    return found
            return _moved(Tile(loop, buffers, known))

        body = tvm_ffi.structural_map(func.body, (tirx.For, moving))
        return func.with_body(tirx.AttrStmt(0, "pragma_import_llvm", tvm.ir.StringImm(FUNCTIONS), body))


def _is_marked(body: tirx.Stmt) -> bool:
    marked: list[bool] = []
    tvm_ffi.structural_walk(body, (tirx.For, lambda loop: marked.append(_ANNOTATION in loop.annotations)))
    return any(marked)


def _has_neon(target: tvm.target.Target) -> bool:
    return str(target.attrs.get("mtriple", "")).startswith("aarch64")


def _moved(tile: Tile) -> tirx.Stmt:
    """A tile's loop with all loads from memory that lie near each other, and change from tile to tile, as `ldur`."""
    body = tile.loop.body
    for source in tile.sources():
        body = _loading(tile, body, source)
    return tile.around(body)


def _loading(tile: Tile, body: tirx.Stmt, source: tirx.Var) -> tirx.Stmt:
    loads = [one for one in tile.loads if one.source.same_as(source) and is_register(one)]
    if not loads or not tile.changes(loads[0]):
        return body
    start = tile.index(loads[0])
    offsets = sorted({offset for one in loads if (offset := tile.offset(one, start)) is not None})
    places = tile.pointers(source, start, offsets, _LDUR, least=2)

    def load(one: TensorLoad) -> tirx.Expr:
        offset = tile.offset(one, start) if one.source.same_as(source) and is_register(one) else None
        if offset not in places:
            return one
        place, rest = places[offset]
        return tirx.call_extern(REGISTER, "neon_load", place, tirx.const(rest, "int32"))

    return tvm_ffi.structural_map(body, (TensorLoad, load))
