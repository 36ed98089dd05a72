"""Asks for weights before they are needed.

The weights of a network do not stay in a core's caches from one inference to the next, and the CPU sees by itself what
comes next only when it has missed some of it already. A schedule knows it: it marks a loop with `ask_ahead`, and here
each step of that loop gets one instruction more, which brings near what lies further on in the weights.
"""

from collections.abc import Mapping

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

_ANNOTATION = "ask_ahead"
_LINE_BYTES = 64  # Of a cache line of x86-64 and of nearly every 64-bit ARM core.


def ask_ahead(schedule: Schedule, loop: LoopRV, axis: int, distance: int) -> None:
    """Has every step of a loop ask for weights that lie ahead, behind the last of which may be asked as well.

    Args:
        schedule: of a function for a CPU.
        loop: around a reduction, which reads the weights last of what it multiplies.
        axis: of the weights, along which it is looked ahead.
        distance: how far, in indices of this axis.
    """
    schedule.annotate(loop, _ANNOTATION, [axis, distance])


@prim_func_pass(opt_level=0, name="InsertPrefetch")
class InsertPrefetch:
    """Puts the instructions in, in scheduled functions that are not lowered yet."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such loop."""
        return func.with_body(structural_map(func.body, (tirx.For, _asking_loop)))


def _asking_loop(loop: tirx.For) -> tirx.For:
    """A loop with the instructions if it is marked."""
    annotations = dict(loop.annotations)
    if _ANNOTATION not in annotations:
        return loop
    axis, distance = map(int, annotations.pop(_ANNOTATION))
    body = _asking(loop.body, axis, distance)
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, annotations, loop.step)


def _asking(body: tirx.Stmt, axis: int, distance: int) -> tirx.Stmt:
    """The body of a loop with one instruction before it for each cache line of weights that it reads in a step."""
    loops = []
    innermost = body
    while isinstance(innermost, tirx.For):
        loops.append(innermost)
        innermost = innermost.body
    assert isinstance(innermost, SBlockRealize)
    weights = innermost.block.reads[-1]
    indices = _read_first(innermost, {loop.loop_var: loop.min for loop in loops})
    last = _read_first(innermost, {loop.loop_var: loop.min + loop.extent - 1 for loop in loops})
    width = int(Analyzer().simplify(last[-1] - indices[-1])) + 1
    indices[axis] += distance
    starts = _line_starts(width, _LINE_BYTES // weights.source.dtype.itemsize)
    lines = [[*indices[:-1], indices[-1] + start] for start in starts]
    return tirx.SeqStmt([*(tirx.Evaluate(prefetch(weights.source, line)) for line in lines), body])


def _read_first(realize: SBlockRealize, loops: Mapping[tirx.Var, tirx.Expr]) -> list[tirx.Expr]:
    """The indices of the weights that a reduction reads where the loops around it stand so."""
    analyzer = Analyzer()
    for variable, value in loops.items():
        analyzer.bind(variable, value)
    for axis, index in zip(realize.block.iter_vars, realize.iter_values, strict=True):
        analyzer.bind(axis.var, analyzer.simplify(index))
    return [analyzer.simplify(one.min) for one in realize.block.reads[-1].region]


def _line_starts(values: int, line: int) -> list[int]:
    """Of so many neighbouring values, one in each cache line of `line` values that they touch wherever they begin."""
    return [max(0, min(start, values - line)) for start in range(0, values, line)]


def prefetch(buffer: tirx.Var, indices: list[tirx.Expr], to_write: bool = False, cache: int = 3) -> tirx.Expr:
    """The instruction that has a cache line brought near; one behind a buffer's end is not an error.

    Args:
        buffer: of any type.
        indices: of a value in the line.
        to_write: whether it will be written.
        cache: 3 for the first, 2 for the second.
    """
    arguments = (buffer.ptr_to(indices), T.int32(to_write), T.int32(cache), T.int32(1))
    return tirx.call_llvm_intrin("void", "llvm.prefetch", *arguments)
