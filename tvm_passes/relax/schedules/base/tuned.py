"""Schedules that a tuner measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import Database, TuningRecord
from tvm.s_tir.schedule import Trace
from tvm.target import Target

from tvm_passes.relax.kernels.integer_kernel import described_convolution, noted_way
from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule

# MetaSchedule's mark of a measurement that failed is a run of 1e10 seconds.
LONGEST_RUN = 1e9
_ALL = 1 << 20  # Records of one function, at most.


@tvm_ffi.register_error  # TVM calls the passes: of errors that it does not know only the message comes through.
class UnusableRecord(ValueError):
    """A record of an operator says what cannot be done to it. Its only argument is the message."""


@dataclass(frozen=True)
class Measured:
    """A schedule that was measured.

    Attributes:
        seconds: the median of its runs.
        runs: how many there are.
        trace: what was done.
    """

    seconds: float
    runs: int
    trace: Trace = field(repr=False)


class TunedSchedule(DesignSpaceRule[Measured, Measured]):
    """Matches the functions of which a database holds a measured schedule; the fastest is its only way."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.applied = 0
        """How many functions this rule scheduled."""

    def match(self, func: tirx.PrimFunc, _: Target) -> tuple[Schedule, Measured] | None:
        """A schedule of the function, and what was measured; None if there is no record, or only failed ones."""
        module = workload_module(func)
        if not self._database.has_workload(module):
            return None
        measured = fastest(self._database.get_top_k(self._database.commit_workload(module), _ALL))
        return None if measured is None else (Schedule(func), measured)

    def ways(self, _schedule: Schedule, operator: Measured, _target: Target) -> list[Measured]:
        """What was measured."""
        return [operator]

    def apply_way(self, schedule: Schedule, _operator: Measured, way: Measured, target: Target) -> None:
        """Does what was recorded.

        Raises:
            UnusableRecord: it cannot be done.
        """
        try:
            way.trace.apply_to_schedule(schedule, remove_postproc=False)
            _check_described(schedule.mod["main"], target)
        except Exception as error:  # TVM's are of many kinds.
            raise UnusableRecord((str(error).strip().splitlines() or [repr(error)])[-1]) from error
        self.applied += 1


def _check_described(function: tirx.PrimFunc, target: Target) -> None:
    """Checks what a description notes (`kernels/integer_kernel.py`): its loops are written much later."""
    shape, vectors = described_convolution(function), integer_vectors(target)
    if shape is not None and vectors is not None:
        noted_way(function, shape, vectors)


def fastest(records: Sequence[TuningRecord]) -> Measured | None:
    """The schedule whose seconds are the least, by the median of all of its records; None if all failed."""
    runs: dict[str, list[float]] = {}
    for record in records:
        runs.setdefault(str(record.trace), []).append(float(record.run_secs[0]))
    seconds = {trace: statistics.median(values) for trace, values in runs.items()}
    best = min(seconds, key=seconds.__getitem__, default=None)
    if best is None or seconds[best] > LONGEST_RUN:
        return None
    trace = next(record.trace for record in records if str(record.trace) == best)
    return Measured(seconds[best], len(runs[best]), trace)


def workload_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A function under the name `main`, without what passes noted of it: the same for the same operator anywhere."""
    plain = tirx.PrimFunc(func.params, func.body, func.ret_type)
    return tvm.IRModule({"main": plain.with_attr({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})})
