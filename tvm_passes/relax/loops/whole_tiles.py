"""Asks once for each tile whether all of it lies inside, and not in every step of it.

Where tiles do not divide an axis, the last one runs over the end, and there is a condition around each of its values.
TVM splits the last tile off in some cases only. Where it did not, LLVM left the sums of 11 pixels × 32 channels in
memory, and a convolution to 14×14 pixels took twice as long (AVX-512). Here the body of a loop over tiles becomes two:
one without conditions, and one with them, for a tile at the end.
"""

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.sym import Analyzer
from tvm.tirx.analysis import undefined_vars
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_equal, structural_map, structural_walk


@prim_func_pass(opt_level=0, name="SplitWholeTiles")
class SplitWholeTiles:
    """Makes two of the bodies of such loops, in lowered functions for CPUs."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if all of its tiles lie inside."""
        target = func.attrs.get("target")
        if target is None or "cpu" not in target.keys:
            return func
        return func.with_body(structural_map(func.body, (tirx.For, _asking_once)))


def _asking_once(loop: tirx.For) -> tirx.For:
    conditions = _Conditions(loop)
    if not conditions.asked:
        return loop
    whole = structural_map(loop.body, (tirx.IfThenElse, conditions.met))
    # Where there is one condition, the tile at the end meets it nowhere.
    end = loop.body if len(conditions.asked) > 1 else structural_map(loop.body, (tirx.IfThenElse, conditions.unmet))
    body = tirx.IfThenElse(tirx.all(*conditions.asked), whole, end)
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations, loop.step
    )


class _Conditions:
    """The conditions in a loop over tiles that are the same for all steps of a tile; `asked` has each once."""

    def __init__(self, loop: tirx.For) -> None:
        self._known = Analyzer()
        self._inner: list[tirx.Var] = []
        self._tile = loop.loop_var
        self.asked: list[tirx.Expr] = []
        structural_walk(loop.body, [(tirx.For, self._note_loop), (tirx.Bind, self._note_value)])
        if self._inner:
            structural_walk(loop.body, (tirx.IfThenElse, self._note_condition))

    def met(self, branch: tirx.IfThenElse) -> tirx.Stmt:
        """What a branch does where all is met that is asked."""
        return branch.then_case if self._is_asked(self._plain(branch.condition)) else branch

    def unmet(self, branch: tirx.IfThenElse) -> tirx.Stmt:
        """What it does where nothing of that is."""
        return tirx.Evaluate(0) if self._is_asked(self._plain(branch.condition)) else branch

    def _is_asked(self, condition: tirx.Expr) -> bool:
        return any(structural_equal(condition, asked) for asked in self.asked)

    def _plain(self, condition: tirx.Expr) -> tirx.Expr:
        """A condition in terms of loops, with the smallest numbers: `9 * tile < 188` is `tile < 21`."""
        condition = self._known.simplify(condition)
        if not isinstance(condition, tirx.LT) or not isinstance(condition.b, tirx.IntImm):
            return condition
        multiples = self._known.modular_set(condition.a)
        factor, rest = int(multiples.coeff), int(multiples.base)
        if factor <= 1:
            return condition
        return self._known.simplify(condition.a // factor) < -((rest - int(condition.b)) // factor)

    def _note_loop(self, loop: tirx.For) -> None:
        self._inner.append(loop.loop_var)

    def _note_value(self, bind: tirx.Bind) -> None:
        # In the order of the statements: those that a value is computed from come first.
        self._known.bind(bind.var, self._known.simplify(bind.value))

    def _note_condition(self, branch: tirx.IfThenElse) -> None:
        condition = self._plain(branch.condition)
        used = undefined_vars(condition, [])
        of_tile = any(self._tile.same_as(one) for one in used)
        of_step = any(inner.same_as(one) for inner in self._inner for one in used)
        if branch.else_case is None and of_tile and not of_step and not self._is_asked(condition):
            self.asked.append(condition)
