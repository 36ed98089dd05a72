"""Sums that begin with what would be added to them: an addition less for each value of a convolution with a bias."""

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad, TensorRegion
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.analysis import get_sblock_read_write_region
from tvm.s_tir.schedule import SBlockRV


def begin_with_bias(schedule: Schedule, start: SBlockRV, output: SBlockRV) -> None:
    """Moves an addition to sums from behind them to their start, if nothing reads the sums without it.

    What is added must be read from a tensor, the same value wherever the sums are: SiLU reads a biased value twice. Of
    several additions it is the first. All else is left as it is, such as y · relu(y + r), which reads y alone too.

    Args:
        schedule: of the operator, finished but for this.
        start: sets the sums to 0, as `decompose_reduction` gives it.
        output: reads the sums at its own axes, which are those of `start`.
    """
    zeros, results = schedule.get(start), schedule.get(output)
    sums = zeros.body.buffer
    bias = _added_to_all(results.body, sums)
    if bias is None:
        return

    def without(addition: tirx.Add) -> tirx.Expr:
        found = _sum_and_added(addition, sums)
        return addition if found is None else found[0]

    # From the outermost inwards: what is left of an addition may be a part of another.
    written = tvm_ffi.structural_map(results.body, (tirx.Add, without), order="pre")
    axes = dict(zip((axis.var for axis in results.iter_vars), (axis.var for axis in zeros.iter_vars), strict=True))
    first = tvm_ffi.structural_map(bias, (tirx.Var, lambda axis: axes.get(axis, axis)))
    buffers = [region.source for region in (*results.reads, *results.writes)]
    _replace(schedule, start, zeros, tirx.BufferStore(sums, first, zeros.body.indices), buffers)
    _replace(schedule, output, results, written, buffers)


def _added_to_all(body: tirx.Stmt, sums: tirx.Buffer) -> TensorLoad | None:
    """What is added to sums wherever they are read; None if that is not one value."""
    reads: list[TensorLoad] = []
    added: list[TensorLoad] = []

    def read(load: TensorLoad) -> None:
        if _reads(load, sums):
            reads.append(load)

    def add(addition: tirx.Add) -> None:
        found = _sum_and_added(addition, sums)
        if found is not None:
            added.append(found[1])

    tvm_ffi.structural_walk(body, [(TensorLoad, read), (tirx.Add, add)])
    same = all(tvm_ffi.structural_equal(value, added[0]) for value in added)
    return added[0] if added and same and len(added) == len(reads) else None


def _sum_and_added(addition: tirx.Add, sums: tirx.Buffer) -> tuple[TensorLoad, TensorLoad] | None:
    """One of the sums and the value of another tensor that are added; None if an addition is of anything else."""
    for one, other in ((addition.a, addition.b), (addition.b, addition.a)):
        if _reads(one, sums) and isinstance(other, TensorLoad) and not _reads(other, sums):
            return one, other
    return None


def _replace(
    schedule: Schedule, block: SBlockRV, statement: SBlock, body: tirx.Stmt, buffers: list[tirx.Buffer]
) -> None:
    """Gives a block another body, which reads and writes some of these buffers."""
    themselves = {buffer: buffer for buffer in buffers}

    def with_regions(reads: list[TensorRegion], writes: list[TensorRegion]) -> SBlock:
        name, annotations = statement.name_hint, statement.annotations
        return SBlock(statement.iter_vars, reads, writes, name, body, annotations=annotations)

    replaced = with_regions(*get_sblock_read_write_region(with_regions([], []), themselves))
    schedule.state.replace(schedule.get_sref(block), replaced, {statement: replaced})


def _reads(value: tirx.Expr, buffer: tirx.Buffer) -> bool:
    return isinstance(value, TensorLoad) and value.source.same_as(buffer)
