"""Parallel loops get as many steps each, which together do all iterations, and others stay as they are."""

import pytest
import tvm
from tvm import tirx
from tvm.sym import Analyzer

from tvm_passes.relax.loops.share_loops import UNITS, ShareLoops


def shared(extent: int, kind: tirx.ForKind) -> tirx.Stmt:
    loop = tirx.For(tirx.Var("i", "int32"), 0, extent, kind, tirx.Evaluate(0))
    return ShareLoops()(tvm.IRModule({"main": tirx.PrimFunc([], loop)}))["main"].body


@pytest.mark.parametrize("extent", [1, 7, 64, 100, 2**31 - 1])
def test_steps_follow_each_other_and_are_alike(extent: int) -> None:
    loop = shared(extent, tirx.ForKind.PARALLEL)
    assert loop.kind == tirx.ForKind.PARALLEL and int(loop.extent) == UNITS
    inner, end, lengths = loop.body, 0, []
    for unit in range(UNITS):
        known = Analyzer()
        known.bind(loop.loop_var, tirx.const(unit, "int32"))
        first, length = (int(known.simplify(one)) for one in (inner.min, inner.extent))
        assert first == end
        end += length
        lengths.append(length)
    assert end == extent and max(lengths) - min(lengths) <= 1


def test_other_loops_stay() -> None:
    assert int(shared(7, tirx.ForKind.SERIAL).extent) == 7
