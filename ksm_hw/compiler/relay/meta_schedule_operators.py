"""MetaSchedule of TVM 0.19: schedules that its rules make of an operator. Runs in Relay's environment.

Records are its database: `database_workload.json` and `database_tuning_record.json`, with 1e10 seconds for a failure.
"""

import contextlib
import math
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import meta_schedule
from tvm.meta_schedule.arg_info import ArgInfo
from tvm.meta_schedule.database import Database, JSONDatabase, TuningRecord
from tvm.meta_schedule.runner import RunnerResult

from ksm_hw.compiler.relay.build_candidates import BuildFunction
from ksm_hw.compiler.tuning.progress import FAILED
from ksm_hw.compiler.tuning.records_folder import MEASUREMENTS, damage_explained
from ksm_hw.compiler.tuning.tensor_intrinsics import leave_out_tensor_intrinsics
from ksm_hw.runtime.operator_timing import Tensors
from tvm_passes.relay.pipeline import build_settings, fold_tasks

_ATTEMPTS = 3  # At candidates, of a search that proposes what the records know.
_WITHOUT_END = 1 << 30

# Those that no CPU has; Relay is tuned for CPUs alone.
_UNUSED_INTRINSICS = [f"tvm.tir.tensor_intrin.{device}" for device in ("cuda", "rocm", "hexagon")]


class MetaScheduleOperator:
    """A function of a network and the search of its schedules; see `TunedOperator`."""

    def __init__(self, task: Any, number: int, database: Database, model: Any, known: Sequence[TuningRecord]) -> None:
        """
        Args:
            task: MetaSchedule's extracted task.
            number: of the operator.
            database: that records are written to.
            model: the cost model of all operators.
            known: what was measured before.
        """
        (self._module,) = task.dispatched
        self._target, self._database, self._model = task.target, database, model
        self._workload = database.commit_workload(self._module)
        self.problem: Hashable = number
        self.calls = int(task.weight)
        self.build: BuildFunction = _build
        self.default_seconds = float("inf")  # TVM's own schedule is none of MetaSchedule's.
        mine = [record for record in known if record.workload.same_as(self._workload)]
        self.tried = [_seconds(record) for record in mine]
        self._traces = {str(record.trace) for record in mine}
        self._arguments = ArgInfo.from_entry_func(self._module, remove_preproc=True)
        self._context: Any = None

    def propose(self, count: int) -> Sequence[Any]:
        if self._context is None:
            self._context = meta_schedule.TuneContext(
                self._module,
                target=self._target,
                space_generator="post-order-apply",
                search_strategy="evolutionary",
                num_threads="logical",
            ).clone()
            self._context.pre_tuning(_WITHOUT_END, count, None, self._database, self._model)
        for _ in range(_ATTEMPTS):
            proposed = self._context.generate_measure_candidates() or []
            new = [candidate for candidate in proposed if str(candidate.sch.trace) not in self._traces][:count]
            if new:
                self._traces |= {str(candidate.sch.trace) for candidate in new}
                return new
        return []

    def job(self, candidate: Any) -> Any:
        tensors = [(str(info.dtype), [int(extent) for extent in info.shape]) for info in self._arguments]
        return candidate.sch.mod, self._target, tensors

    def record(self, candidate: Any, seconds: float) -> None:
        runs = [seconds if math.isfinite(seconds) else FAILED]
        self._database.commit_tuning_record(
            TuningRecord(candidate.sch.trace, self._workload, runs, self._target, self._arguments)
        )

    def learn(self, candidates: Sequence[Any], seconds: Sequence[float]) -> None:
        results = [
            RunnerResult([one], None) if math.isfinite(one) else RunnerResult(None, "it failed") for one in seconds
        ]
        self._context.notify_runner_results(list(candidates), results)
        self._model.update(self._context, list(candidates), results)


def find_operators(network: tvm.IRModule, target: tvm.target.Target, folder: Path) -> list[MetaScheduleOperator]:
    """The functions that a network becomes, with what the records know of them.

    Args:
        network: as lowered.
        target: what it will be built for.
        folder: of the records.

    Raises:
        UserError: the records are damaged.
    """
    leave_out_tensor_intrinsics(*_UNUSED_INTRINSICS)
    tasks = _extract(fold_tasks(network, {}, target).main, target)
    database = _open_database(folder, allow_missing=True)
    known = list(database.get_all_tuning_records())
    model = meta_schedule.cost_model.XGBModel()
    return [MetaScheduleOperator(task, number, database, model, known) for number, task in enumerate(tasks)]


@contextlib.contextmanager
def applied_records(folder: Path) -> "Iterator[Database]":
    """Lets what is built with `meta_schedule` take the fastest recorded schedules.

    Raises:
        UserError: the records are missing or damaged.
    """
    with _open_database(folder, allow_missing=False) as database:
        yield database


def recorded_operators(main: tvm.IRModule, target: tvm.target.Target, database: Database) -> int:
    """How many of a network's functions have a schedule in the records."""
    return sum(
        database.query_tuning_record(task.dispatched[0], target, task.task_name) is not None
        for task in _extract(main, target)
    )


def _extract(main: tvm.IRModule, target: tvm.target.Target) -> list[Any]:
    settings = build_settings("inference", meta_schedule=True)
    return list(
        meta_schedule.relay_integration.extract_tasks(
            main,
            target,
            None,
            opt_level=settings.opt_level,
            pass_config=dict(settings.config),
            disabled_pass=list(settings.disabled_pass),
        )
    )


def _build(job: tuple[tvm.IRModule, tvm.target.Target, Tensors]) -> tuple[tvm.runtime.Module, Tensors]:
    """Runs in a builder."""
    module, target, tensors = job
    return tvm.build(module, target=target), tensors


def _seconds(record: TuningRecord) -> float:
    runs = [float(seconds) for seconds in record.run_secs]
    return min(runs) if runs and min(runs) < FAILED else float("inf")


def _open_database(folder: Path, allow_missing: bool) -> Database:
    with damage_explained(folder, MEASUREMENTS):
        return JSONDatabase(work_dir=str(folder), allow_missing=allow_missing)
