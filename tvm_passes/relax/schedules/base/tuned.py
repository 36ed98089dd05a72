"""Schedules that a tuner measured."""

import statistics
from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.meta_schedule.database import Database, TuningRecord
from tvm.target import Target

# MetaSchedule's mark of a measurement that failed is a run of 1e10 seconds.
LONGEST_RUN = 1e9
_ALL = 1 << 20  # Records of one function, at most.


class TunedSchedule(ScheduleRule):
    """Matches the functions of which a database holds a measured schedule, and applies the fastest."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.applied = 0
        """How many functions this rule scheduled."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The scheduled function, or None if there is no record of it, or only failed ones."""
        module = workload_module(func)
        if not self._database.has_workload(module):
            return None
        record = fastest(self._database.get_top_k(self._database.commit_workload(module), _ALL))
        if record is None:
            return None
        schedule = Schedule(func)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        self.applied += 1
        return schedule


def fastest(records: Sequence[TuningRecord]) -> TuningRecord | None:
    """A record of the schedule whose seconds are the least, by the median of all of its records; None if all failed."""
    runs: dict[str, list[float]] = {}
    for record in records:
        runs.setdefault(str(record.trace), []).append(float(record.run_secs[0]))
    seconds = {trace: statistics.median(values) for trace, values in runs.items()}
    best = min(seconds, key=seconds.__getitem__, default=None)
    if best is None or seconds[best] > LONGEST_RUN:
        return None
    return next(record for record in records if str(record.trace) == best)


def workload_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A function under the name `main`, without what passes noted of it: the same for the same operator anywhere."""
    plain = tirx.PrimFunc(func.params, func.body, func.ret_type)
    return tvm.IRModule({"main": plain.with_attr({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})})
