"""Gives every loop nest the schedule of the first rule that matches it.

In:  a module with `PrimFunc`s as `FuseTIR` leaves them.
Out: the same module; each `PrimFunc` that a rule matched is scheduled, and its attribute `SCHEDULE` says by which rule
     and in which way. Functions that were scheduled before, and those of which no rule knows anything, are left alone.
"""

import logging
from collections.abc import Sequence

from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import PassContext, module_pass
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.transform import ConvertSSA
from tvm.target import Target

from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule

SCHEDULE = "schedule"
"""The attribute of a scheduled function: a text such as `Dense: Band(outputs=250, inputs=8)`. No code depends on it."""
_IS_SCHEDULED = "tirx.is_scheduled"  # As TVM's dlight writes it.

_log = logging.getLogger(__name__)


@module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Asks rules for a schedule of every function, in their order.

    Args:
        rules: most specific first.
    """

    def __init__(self, rules: Sequence[ScheduleRule]) -> None:
        self.rules = rules

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Schedules what is not scheduled yet, for the function's own target or else the current one."""
        for name, function in module.functions_items():
            if not isinstance(function, tirx.PrimFunc) or function.attrs.get(_IS_SCHEDULED):
                continue
            target = function.attrs.get("target") or Target.current(allow_none=False)
            found = self._schedule(function, target)
            if found is None:
                _log.info("%s: no rule matches", name.name_hint)
                continue
            schedule, choice = found
            _log.info("%s: %s", name.name_hint, choice)
            # Of a loop in parts (`loop_partition`) each defines the same variables, which other passes do not take.
            scheduled = ConvertSSA()(schedule.mod)["main"]
            module[name] = scheduled.with_attrs({_IS_SCHEDULED: True, SCHEDULE: choice})
        return module

    def _schedule(self, function: tirx.PrimFunc, target: Target) -> tuple[Schedule, str] | None:
        """A schedule, and what was chosen."""
        for rule in self.rules:
            choice = type(rule).__name__
            if isinstance(rule, DesignSpaceRule):
                if (candidate := next(rule.candidates(function, target), None)) is not None:
                    return candidate.schedule, f"{choice}: {candidate.way}"
            elif (schedule := rule.apply(function, target, False)) is not None:
                return schedule, choice
        return None
