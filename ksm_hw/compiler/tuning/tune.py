"""Tuning: the schedules of a network's operators are measured where they will run, and the fastest are kept.

The operators are those of the backbone: masks are folded into weights, which are arguments of operators. So what is
tuned with the tasks of one bundle serves every task of the backbone, at the same batch and image size. Only where
channels are 0 in all of some tasks (`zero_channels`) an artifact of those has operators of its own.

An operator's candidates are those of its schedule rule (`DesignSpaceRule`). Its default is always measured first, so
that no operator ends slower than untuned. MetaSchedule's XGBoost model, trained on what was measured, ranks the others;
those of int8's kernels, whose loops it cannot read, keep the order of their rule. The next ones measured are of the
operator that has most to gain. At last each operator's default and its fastest candidate are measured in turns: of many
that are alike, the one that a single measurement calls fastest was lucky.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.database import TuningRecord
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

from ksm_hw.artifact.modes import Precision
from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.reaching import WAIT
from ksm_hw.compiler.relax import check_integers, main_functions
from ksm_hw.compiler.tuning.measure_candidates import CandidateMeasurer, Measurement
from ksm_hw.compiler.tuning.operators import Operator, find_operators, key_of, seconds_of
from ksm_hw.compiler.tuning.progress import FAILED, FIRST_FAILURES, HOPELESS, TuneProgress, TuneResult, all_failed
from ksm_hw.compiler.tuning.records_folder import tuned_folder
from ksm_hw.compiler.tuning.tuning_records import TuningRecords, create_records
from ksm_hw.compiler.zero_channels import without_zero_channels
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.runtime.tvm_import import carry_errors
from ksm_hw.toolchains.targets import CompileTarget
from tvm_passes.relax.schedules.base.tuned import LONGEST_RUN

BATCH = 8  # Candidates between two decisions, for each board.
WARM_UP = 64  # Measurements before the model's opinion counts; until then the order of the rule's own model.
MEASUREMENTS = 5  # Of the default and the fastest candidate of each operator.


def tune(
    bundle: Bundle,
    target: CompileTarget,
    output: Path,
    *,
    trials: int,
    board: BoardAddress | None = None,
    batch: int = 1,
    precision: Precision = "float32",
    wait: float = WAIT,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
) -> TuneResult:
    """Measures schedules of the operators of a bundle's backbone, and writes the records for `compile --tuned`.

    Every measurement is written at once. What is in the records already is not measured again, so that the same call
    goes on after a stop. The tune serves every task of the backbone.

    Args:
        bundle: any tasks of the backbone.
        target: what to tune for.
        output: folder of the records.
        trials: candidates in all. A tune ends earlier when there is no candidate left.
        board: where to measure: all boards of the key at once; this machine without.
        batch: images an inference.
        precision: what an inference computes in.
        wait: seconds that boards which are all gone may take to come back.
        on_progress: called after each trial.

    Raises:
        UserError: the first trials all failed, with what the last of them said; all boards are gone; `output` holds
            something else, or records of another target or version of TVM; and as `compile_bundle`.
    """
    bundle = without_zero_channels(bundle).bundle
    if precision == "int8":
        check_integers(bundle, target, "switch", batch)
    carry_errors()
    with tuned_folder(output):
        records = create_records(output, target)
        with CandidateMeasurer(target, board, wait) as measurer:
            functions = main_functions(bundle, target, batch, precision)
            return tune_functions(functions, records, measurer, trials=trials, on_progress=on_progress)


def tune_functions(
    functions: tvm.IRModule,
    records: TuningRecords,
    measurer: CandidateMeasurer,
    *,
    trials: int,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
) -> TuneResult:
    """As `tune`, for functions as `main_functions` gives them."""
    operators = find_operators(functions, records)
    if not operators:
        raise UserError(
            "Every operator has one schedule alone on this target, so there is nothing to tune. Compile without "
            "--tuned."
        )
    return _Search(records, operators, measurer, trials, on_progress).run()


# A candidate of an operator, and the seconds of its runs.
_Result = tuple[Operator, Schedule, Sequence[float]]


class _Search:
    """A tune under way."""

    def __init__(
        self,
        records: TuningRecords,
        operators: list[Operator],
        measurer: CandidateMeasurer,
        trials: int,
        on_progress: Callable[[TuneProgress], None],
    ) -> None:
        self.records, self.operators, self.measurer, self.trials = records, operators, measurer, trials
        self.on_progress = on_progress
        self.measured, self.again, self.error, self.start = 0, 0, "", time.monotonic()
        self.failures: list[TuningRecord] = []  # Not written until a trial succeeds: the fault may be outside.
        self.random = np.random.default_rng(self.done)
        self.model = XGBModel(num_warmup_samples=0)
        self.unlearned = self._known_results()  # What the model was not trained with yet.

    @property
    def done(self) -> int:
        return sum(len(operator.tried) for operator in self.operators)

    @property
    def failed(self) -> int:
        return sum(operator.seconds(key) == float("inf") for operator in self.operators for key in operator.tried)

    def run(self) -> TuneResult:
        """Measures until there are enough trials, or nothing is left to try, and then the finalists."""
        while batch := self._next_batch():
            self._measure(batch, [HOPELESS * operator.best for operator, _ in batch])
        if self.failed == self.done:
            raise self._all_failed()
        while batch := self._finalists():
            self._measure(batch, [float("inf")] * len(batch), turns=MEASUREMENTS - 1)
        return TuneResult(
            operators=len(self.operators),
            trials=self.done,
            measured=self.measured,
            failed=self.failed,
            again=self.again,
            latency=self._latency(lambda operator: operator.best),
            default_latency=self._latency(lambda operator: operator.seconds(key_of(operator.default))),
        )

    def _next_batch(self) -> list[tuple[Operator, Schedule]]:
        size = min(BATCH * self.measurer.boards, self.trials - self.done)
        if size <= 0:
            return []
        defaults = [
            (operator, operator.default)
            for operator in self.operators
            if key_of(operator.default) not in operator.tried
        ]
        if defaults:
            return defaults[:size]
        for operator in sorted(self.operators, key=self._gain, reverse=True):
            if untried := operator.untried():
                return [(operator, schedule) for schedule in self._most_promising(operator, untried)[:size]]
        return []

    def _finalists(self) -> list[tuple[Operator, Schedule]]:
        return [(operator, schedule) for operator in self.operators for schedule in operator.finalists(MEASUREMENTS)]

    def _gain(self, operator: Operator) -> float:
        """What an operator takes of the network's time, for each of its trials."""
        longest = max((other.best for other in self.operators if other.best < float("inf")), default=1.0)
        return operator.calls * min(operator.best, longest) / len(operator.tried)

    def _most_promising(self, operator: Operator, untried: list[Schedule]) -> list[Schedule]:
        """The candidates by the model's opinion, every fourth at random: the model learns from surprises."""
        if not operator.has_loops or self.model.data_size + len(self.unlearned) < WARM_UP:
            return untried
        self._learn()
        scores = self.model.predict(operator.context, [self._candidate(operator, schedule) for schedule in untried])
        ranked = [untried[index] for index in np.argsort(-scores)]
        for place in range(3, len(ranked), 4):
            other = int(self.random.integers(place, len(ranked)))
            ranked[place], ranked[other] = ranked[other], ranked[place]
        return ranked

    def _measure(self, batch: list[tuple[Operator, Schedule]], limits: list[float], turns: int = 1) -> None:
        schedules = [schedule for _, schedule in batch]
        arguments = [operator.arguments for operator, _ in batch]
        measurements = self.measurer.measure(schedules, arguments, limits, turns)
        try:
            for (operator, schedule), measurement in zip(batch * turns, measurements, strict=True):
                self._note(operator, schedule, measurement)
                if self.failed == self.done >= FIRST_FAILURES:
                    raise self._all_failed()
        finally:
            self.records.write_header()

    def _note(self, operator: Operator, schedule: Schedule, measurement: Measurement) -> None:
        """Writes a trial into the records, and tells of it."""
        runs = list(measurement.seconds) or [FAILED]
        earlier = operator.tried.setdefault(key_of(schedule), [])
        if earlier:
            self.again += 1
        else:
            self.measured += 1
        earlier.append(seconds_of(runs))
        if operator.has_loops and not measurement.error:
            self.unlearned.append((operator, schedule, runs))
        target = operator.context.target
        self.failures.append(TuningRecord(schedule.trace, operator.workload, runs, target, operator.arguments))
        if self.failed < self.done:
            for record in self.failures:
                self.records.database.commit_tuning_record(record)
            self.failures.clear()
        self.error = measurement.error or self.error
        each = (time.monotonic() - self.start) / (self.measured + self.again)
        self.on_progress(
            TuneProgress(
                done=self.done,
                total=self.trials,
                failed=self.failed,
                error=self.error,
                seconds_left=each * (self.trials - self.done),
                latency=self._latency(lambda operator: operator.best),
                boards=self.measurer.boards,
                again=self.again,
            )
        )

    def _latency(self, seconds: Callable[[Operator], float]) -> float | None:
        total = sum(operator.calls * seconds(operator) for operator in self.operators)
        return total if total < float("inf") else None

    def _known_results(self) -> list[_Result]:
        operators = {operator.workload: operator for operator in self.operators if operator.has_loops}
        return [
            (operators[record.workload], record.as_measure_candidate().sch, list(map(float, record.run_secs)))
            for record in self.records.database.get_all_tuning_records()
            if record.workload in operators and seconds_of(record.run_secs) < LONGEST_RUN
        ]

    def _learn(self) -> None:
        """Trains the model with what it has not seen. Only when its opinion counts: to import XGBoost takes seconds."""
        results: dict[Operator, list[tuple[Schedule, Sequence[float]]]] = {}
        for operator, schedule, runs in self.unlearned:
            results.setdefault(operator, []).append((schedule, runs))
        for operator, own in results.items():
            candidates = [self._candidate(operator, schedule) for schedule, _ in own]
            self.model.update(operator.context, candidates, [RunnerResult(list(runs), None) for _, runs in own])
        self.unlearned.clear()

    def _candidate(self, operator: Operator, schedule: Schedule) -> MeasureCandidate:
        return MeasureCandidate(schedule, operator.arguments)

    def _all_failed(self) -> UserError:
        return UserError(all_failed(self.done, self.error))
