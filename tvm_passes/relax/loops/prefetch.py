"""Asks for weights, and for a tile of the result, before they are needed.

The weights of a network do not stay in a core's caches from one inference to the next, and the CPU sees by itself what
comes next only when it has missed some of it already. A schedule knows it: it marks a loop with `ask_ahead`, and here
each step of that loop gets one instruction more, which brings near what lies further on in the weights. A tile of a
large map lies in short pieces far from each other, which a core cannot foresee at all: with `ask_for_result` it asks
for them, and for what will be added to the sums, before it computes these.
"""

import itertools
from collections.abc import Mapping, Sequence

import tvm
from tvm import tirx
from tvm.ir import TensorRegion
from tvm.ir.transform import PassContext
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_equal, structural_map

_ANNOTATION = "ask_ahead"
_RESULT = "ask_for_result"
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


def ask_for_result(schedule: Schedule, loop: LoopRV) -> None:
    """Has every step of a loop ask for the tile of the result that it will write, and of maps that it adds to its sums.

    Args:
        schedule: of a function for a CPU.
        loop: whose body ends with the loops that write the tile, computed from maps of the result's shape and others.
    """
    schedule.annotate(loop, _RESULT, True)


@prim_func_pass(opt_level=0, name="InsertPrefetch")
class InsertPrefetch:
    """Puts the instructions in, in scheduled functions that are not lowered yet."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such loop."""
        return func.with_body(structural_map(func.body, (tirx.For, _asking_loop)))


def _asking_loop(loop: tirx.For) -> tirx.For:
    """A loop with the instructions if it is marked."""
    annotations = dict(loop.annotations)
    body = loop.body
    if _ANNOTATION in annotations:
        axis, distance = map(int, annotations.pop(_ANNOTATION))
        body = _asking(body, axis, distance)
    if annotations.pop(_RESULT, False):
        body = _asking_for_result(body)
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, annotations, loop.step)


def _asking(body: tirx.Stmt, axis: int, distance: int) -> tirx.Stmt:
    """The body of a loop with one instruction before it for each cache line of weights that it reads in a step."""
    loops, innermost = _nest(body)
    weights = innermost.block.reads[-1]
    return tirx.SeqStmt([*_asked(weights, innermost, {}, loops, ahead=(axis, distance)), body])


def _asking_for_result(body: tirx.Stmt) -> tirx.Stmt:
    """The body of a loop with one instruction before it for each cache line of maps that its last nest goes over."""
    loops, innermost = _nest(body.seq[-1])
    (written,) = innermost.block.writes
    shape = [int(extent) for extent in written.source.shape]
    maps = [read for read in innermost.block.reads if [int(extent) for extent in read.source.shape] == shape]
    asked = []
    for region in (*maps, written):
        row = [loop for loop in loops if _moves_along_row(innermost, region, loop)]
        pixels = [loop for loop in loops if loop not in row]
        for steps in itertools.product(*(range(int(loop.extent)) for loop in pixels)):
            at = {loop.loop_var: loop.min + step for loop, step in zip(pixels, steps, strict=True)}
            asked += _asked(region, innermost, at, row, to_write=region is written)
    return tirx.SeqStmt([*asked, body])


def _nest(body: tirx.Stmt) -> tuple[list[tirx.For], SBlockRealize]:
    """The loops of a nest, and the block in them."""
    loops = []
    while isinstance(body, tirx.For):
        loops.append(body)
        body = body.body
    assert isinstance(body, SBlockRealize)
    return loops, body


def _moves_along_row(realize: SBlockRealize, region: TensorRegion, loop: tirx.For) -> bool:
    """Whether a loop goes over values of a region that lie together."""
    first, second = (_first(realize, region, {loop.loop_var: loop.min + step}) for step in (0, 1))
    return not structural_equal(first[-1], second[-1])


def _asked(
    region: TensorRegion,
    realize: SBlockRealize,
    at: Mapping[tirx.Var, tirx.Expr],
    row: list[tirx.For],
    ahead: Sequence[int] = (),
    to_write: bool = False,
) -> list[tirx.Stmt]:
    """An instruction for each cache line of a region that a block goes over in some of its loops.

    Args:
        region: that the block reads or writes.
        realize: the block.
        at: where the other loops stand.
        row: the loops, which go over neighbouring values.
        ahead: an axis of the region and how much further on to ask along it; empty for what the block itself touches.
        to_write: whether it will be written.
    """
    indices = _first(realize, region, {**at, **{loop.loop_var: loop.min for loop in row}})
    last = _first(realize, region, {**at, **{loop.loop_var: loop.min + loop.extent - 1 for loop in row}})
    width = int(Analyzer().simplify(last[-1] - indices[-1])) + 1
    if ahead:
        axis, distance = ahead
        indices[axis] += distance
    starts = _line_starts(width, _LINE_BYTES // region.source.dtype.itemsize)
    lines = [[*indices[:-1], indices[-1] + start] for start in starts]
    return [tirx.Evaluate(prefetch(region.source, line, to_write)) for line in lines]


def _first(realize: SBlockRealize, region: TensorRegion, loops: Mapping[tirx.Var, tirx.Expr]) -> list[tirx.Expr]:
    """The indices of what a block touches first of a region where the loops around it stand so."""
    analyzer = Analyzer()
    for variable, value in loops.items():
        analyzer.bind(variable, value)
    for axis, index in zip(realize.block.iter_vars, realize.iter_values, strict=True):
        analyzer.bind(axis.var, analyzer.simplify(index))
    return [analyzer.simplify(one.min) for one in region.region]


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
