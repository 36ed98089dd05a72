"""AutoTVM: TVM's schedule templates of operators, searched with its XGBoost model. Runs in Relay's environment.

Records are lines of AutoTVM's log. Where TVM has several templates for one operator, each is searched, and the compiler
takes the fastest.
"""

import contextlib
import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import autotvm, relay
from tvm.autotvm.measure import MeasureErrorNo, MeasureInput, MeasureResult
from tvm.autotvm.task.space import FallbackConfigEntity, SplitSpace
from tvm.autotvm.tuner import XGBTuner

from ksm_hw.compiler.relay.build_candidates import BuildFunction
from ksm_hw.compiler.tuning.records_folder import AUTOTVM_RECORDS, damage_explained
from ksm_hw.runtime.operator_timing import Tensors
from tvm_passes.relay.pipeline import fold_tasks

# Trials of an operator between two fits of its model. TVM's own 64 are all at random where there are fewer trials.
PLAN = 8


class AutotvmOperator:
    """A template with the shapes of an operator; see `TunedOperator`."""

    def __init__(self, task: Any, calls: Mapping[Hashable, int], folder: Path, known: Mapping[int, float]) -> None:
        """
        Args:
            task: AutoTVM's.
            calls: that an inference makes of each problem.
            folder: of the records.
            known: seconds of points of the template's space that were measured before.
        """
        self._task, self._folder = task, folder
        self.problem: Hashable = _problem_of_task(task)
        self.calls = calls.get(self.problem, 1)
        self.build: BuildFunction = _build
        self.tried = list(known.values())
        # The features of loops take a lowering for each candidate that the model looks at, thousands of them.
        self._tuner = XGBTuner(task, plan_size=PLAN, feature_type="knob", loss_type="rank-binary", num_threads=1)
        self._default = _default_point(task)
        self.default_seconds = known.get(self._default, float("inf")) if self._default is not None else float("inf")
        configs = [task.config_space.get(point) for point in known]
        self.learn(configs, list(known.values()))

    def propose(self, count: int) -> Sequence[Any]:
        if self._default is not None and self._default not in self._tuner.visited:
            self._tuner.visited.add(self._default)
            return [self._task.config_space.get(self._default)]
        return list(self._tuner.next_batch(count))

    def job(self, candidate: Any) -> Any:
        return self._input(candidate)

    def record(self, candidate: Any, seconds: float) -> None:
        if candidate.index == self._default:
            self.default_seconds = seconds
        with (self._folder / AUTOTVM_RECORDS).open("a") as log:
            log.write(autotvm.record.encode(self._input(candidate), _result(seconds)) + "\n")

    def learn(self, candidates: Sequence[Any], seconds: Sequence[float]) -> None:
        self._tuner.update([self._input(candidate) for candidate in candidates], list(map(_result, seconds)))
        # Processes that the model had for its features, which each operator would keep.
        self._tuner.cost_model._close_pool()

    def _input(self, config: Any) -> MeasureInput:
        return MeasureInput(self._task.target, self._task, config)


def find_operators(network: tvm.IRModule, target: tvm.target.Target, folder: Path) -> list[AutotvmOperator]:
    """The templates for a network's operators, with what the records know of them.

    Args:
        network: as lowered.
        target: what it will be built for.
        folder: of the records.

    Raises:
        UserError: the records are damaged.
    """
    # Templates are for operators before the phase of layouts, whose choices depend on the templates' records.
    main = fold_tasks(network, {}, target, fused=True).main
    tasks = autotvm.task.extract_from_program(main["main"], {}, target)
    known: dict[Any, dict[int, float]] = {}
    for measured, result in _records(folder, allow_missing=True):
        seconds = float(result.costs[0]) if result.error_no == MeasureErrorNo.NO_ERROR else float("inf")
        known.setdefault(measured.task.workload, {})[int(measured.config.index)] = seconds
    calls = _calls(main)
    return [AutotvmOperator(task, calls, folder, known.get(task.workload, {})) for task in tasks]


@contextlib.contextmanager
def applied_records(folder: Path) -> "Iterator[BestRecords]":
    """Lets what is compiled take the fastest recorded schedules.

    Raises:
        UserError: the records are missing or damaged.
    """
    with BestRecords(list(_records(folder, allow_missing=False))) as best:
        yield best


class BestRecords(autotvm.task.ApplyHistoryBest):
    """AutoTVM's records for the compiler.

    Attributes:
        used: the operators that got a schedule of them.
    """

    def __init__(self, records: list[tuple[MeasureInput, MeasureResult]]) -> None:
        super().__init__(records)
        self.used: set[Any] = set()
        self._recorded = {workload for _, workload in self.best_by_targetkey}

    def _query_inside(self, target: tvm.target.Target, workload: Any) -> Any:
        found = super()._query_inside(target, workload)
        # The phase of layouts adds what it made of an operator that had a record, under another name.
        if found is not None and workload in self._recorded:
            self.used.add(workload)
        return found


def _build(job: MeasureInput) -> tuple[tvm.runtime.Module, Tensors]:
    """Runs in a builder."""
    autotvm.env.GLOBAL_SCOPE.in_tuning = True  # Templates leave out what is done once for all inferences.
    with job.target:
        schedule, arguments = job.task.instantiate(job.config)
        module = tvm.build(schedule, arguments, target=job.target)
    return module, [(str(tensor.dtype), [int(extent) for extent in tensor.shape]) for tensor in arguments]


def _records(folder: Path, allow_missing: bool) -> list[tuple[MeasureInput, MeasureResult]]:
    path = folder / AUTOTVM_RECORDS
    if allow_missing and not path.exists():
        return []
    with damage_explained(folder, AUTOTVM_RECORDS):
        return list(autotvm.record.load_from_file(str(path)))


def _result(seconds: float) -> MeasureResult:
    error = MeasureErrorNo.NO_ERROR if math.isfinite(seconds) else MeasureErrorNo.RUNTIME_DEVICE
    return MeasureResult((seconds,) if math.isfinite(seconds) else ("", ""), error, 0.0, time.time())


def _default_point(task: Any) -> int | None:
    """The point of a template's space that the compiler takes without records; None where that lies outside of it."""
    default = FallbackConfigEntity()
    with task.target:
        task.instantiate(default)
    knobs = []
    for name, space in task.config_space.space_map.items():
        wanted = _knob_value(space, default[name])
        places = [place for place, entity in enumerate(space.entities) if _knob_value(space, entity) == wanted]
        if not places:
            return None
        knobs.append(places[0])
    return int(task.config_space.knob2point(knobs))


def _knob_value(space: Any, entity: Any) -> Any:
    """What an entity of a knob says, with all sizes of a split written out."""
    if not isinstance(space, SplitSpace):
        return repr(entity)
    sizes = [int(size) for size in entity.size]
    rest = space.product // math.prod(size for size in sizes if size > 0)
    return [size if size > 0 else rest for size in sizes]


def _problem_of_task(task: Any) -> Hashable:
    (_, data, *_), (_, weight, *_), *others = task.args
    strides = others[0] if others else None
    return tuple(data), tuple(weight), tuple(strides) if isinstance(strides, tuple | list) else None


def _calls(main: tvm.IRModule) -> dict[Hashable, int]:
    """How often a network calls operators of two arguments, by their problems."""
    counts: dict[Hashable, int] = {}

    def visit(expression: relay.Expr) -> None:
        if isinstance(expression, relay.Call) and isinstance(expression.op, tvm.ir.Op) and len(expression.args) == 2:
            data, weight = (getattr(argument.checked_type, "shape", ()) for argument in expression.args)
            strides = getattr(expression.attrs, "strides", None)
            problem = (
                tuple(map(int, data)),
                tuple(map(int, weight)),
                None if strides is None else tuple(map(int, strides)),
            )
            counts[problem] = counts.get(problem, 0) + 1

    relay.analysis.post_order_visit(main["main"], visit)
    return counts
