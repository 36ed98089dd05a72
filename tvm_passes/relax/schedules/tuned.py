"""Schedules that a tuner measured."""

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.meta_schedule.database import Database
from tvm.target import Target

# MetaSchedule's mark of a measurement that failed is a run of 1e10 seconds.
LONGEST_RUN = 1e9


class TunedSchedule(ScheduleRule):
    """Matches the functions of which a database holds a measured schedule, and applies the fastest."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.applied = 0
        """How many functions this rule scheduled."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if there is no record of it, or only failed ones."""
        record = self._database.query_tuning_record(workload_module(func), target, "main")
        if record is None or float(record.run_secs[0]) > LONGEST_RUN:
            return None
        schedule = Schedule(func)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        self.applied += 1
        return schedule


def workload_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A function under the name `main`, without what passes noted of it: the same for the same operator anywhere."""
    plain = tirx.PrimFunc(func.params, func.body, func.ret_type)
    return tvm.IRModule({"main": plain.with_attr({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})})
