"""A tune through Relay: operators of AutoTVM's or MetaSchedule's search take turns. Runs in Relay's environment."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ksm_hw.compiler.compiled import common_image_size, most_classes
from ksm_hw.compiler.relay.build_candidates import CandidateBuilder
from ksm_hw.compiler.relay.compile_tasks import ask_for_build_flags_once, tvm_target_of
from ksm_hw.compiler.relay.lower import lower_backbone
from ksm_hw.compiler.relay.tuned_operator import TunedOperator
from ksm_hw.compiler.tuning.progress import FIRST_FAILURES, HOPELESS, TunerName, all_failed
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import shapes_of

BATCH = 8  # Candidates between two decisions; fewer where the trials would not be enough for all operators.


def tune_operators(
    bundle: Bundle,
    records: Path,
    tuner: TunerName,
    target: dict[str, Any],
    link: Sequence[str],
    batch: int,
    trials: int,
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    on_progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measures schedules of the operators of a bundle's backbone, and writes each into the records at once.

    Args:
        bundle, tuner, batch, trials: as `tune_through_relay`.
        records: folder of the records.
        target: the dictionary of TVM's target.
        link: command of the linker.
        measure: what measures a library: its `path`, `tensors` and `limit`; it gives what `time_library` does.
        on_progress: called after each trial with the attributes of a `TuneProgress`, but `boards` and `again`.

    Returns:
        The attributes of a `TuneResult`, but `again`.

    Raises:
        UserError: the first trials all failed; the records are damaged; and as `lower_backbone`.
    """
    ask_for_build_flags_once()
    with CandidateBuilder(link) as builder:
        size, shapes = common_image_size(bundle), shapes_of(bundle.tensors)
        network = lower_backbone(bundle.backbone, most_classes(bundle), batch, size, shapes)
        operators: Sequence[TunedOperator]
        if tuner == "autotvm":
            from ksm_hw.compiler.relay import autotvm_operators

            operators = autotvm_operators.find_operators(network, tvm_target_of(target), records)
        else:
            from ksm_hw.compiler.relay import meta_schedule_operators

            operators = meta_schedule_operators.find_operators(network, tvm_target_of(target), records)
        return _Tune(operators, builder, trials, measure, on_progress).run()


class _Tune:
    """A tune under way."""

    def __init__(
        self,
        operators: Sequence[TunedOperator],
        builder: CandidateBuilder,
        trials: int,
        measure: Callable[[dict[str, Any]], dict[str, Any]],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> None:
        self.operators, self.builder, self.trials = operators, builder, trials
        self.measure, self.on_progress = measure, on_progress
        self.measured, self.error, self.start = 0, "", time.monotonic()
        # Not written until a trial succeeds: the fault may be outside.
        self.failures: list[tuple[TunedOperator, Any]] = []
        self.exhausted: set[int] = set()

    @property
    def done(self) -> int:
        return sum(len(operator.tried) for operator in self.operators)

    @property
    def failed(self) -> int:
        return sum(seconds == float("inf") for operator in self.operators for seconds in operator.tried)

    def run(self) -> dict[str, Any]:
        """Measures until there are enough trials, or nothing is left to try."""
        size = min(max(self.trials // max(len(self.operators), 1), 1), BATCH)
        while self.done < self.trials and (operator := self._next_operator()) is not None:
            candidates = operator.propose(min(size, self.trials - self.done))
            if candidates:
                self._try(operator, candidates)
            else:
                self.exhausted.add(id(operator))
        if self.done and self.failed == self.done:
            raise UserError(all_failed(self.done, self.error))
        return {
            "operators": len(self.operators),
            "trials": self.done,
            "measured": self.measured,
            "failed": self.failed,
            "latency": self._latency(_best),
            "default_latency": self._latency(lambda operator: operator.default_seconds),
        }

    def _next_operator(self) -> TunedOperator | None:
        """One that was not tried, then the one that takes most of the network's time for each of its trials."""
        longest = max((_best(operator) for operator in self.operators if _best(operator) < float("inf")), default=1.0)

        def gain(operator: TunedOperator) -> float:
            if not operator.tried:
                return float("inf")
            return operator.calls * min(_best(operator), longest) / len(operator.tried)

        left = [operator for operator in self.operators if id(operator) not in self.exhausted]
        return max(left, key=gain, default=None)

    def _try(self, operator: TunedOperator, candidates: Sequence[Any]) -> None:
        """All are built before the first is measured: a build beside it would disturb a measurement on this machine."""
        seconds = []
        built = self.builder.build(operator.build, [operator.job(candidate) for candidate in candidates])
        for candidate, library in zip(candidates, built, strict=True):
            answer: dict[str, Any] = {"error": library.error}
            if not library.error:
                limit = HOPELESS * _best(operator)
                answer = self.measure({"path": str(library.path), "tensors": list(library.tensors), "limit": limit})
                library.path.unlink()
            seconds.append(float(answer.get("seconds", "inf")))
            self._note(operator, candidate, seconds[-1], answer.get("error", ""))
        operator.learn(candidates, seconds)

    def _note(self, operator: TunedOperator, candidate: Any, seconds: float, error: str) -> None:
        """Writes a trial into the records, and tells of it."""
        operator.tried.append(seconds)
        self.measured += 1
        if error:
            self.error = error
            self.failures.append((operator, candidate))
        else:
            operator.record(candidate, seconds)
        if self.failed < self.done:
            for other, failure in self.failures:
                other.record(failure, float("inf"))
            self.failures.clear()
        each = (time.monotonic() - self.start) / self.measured
        self.on_progress(
            {
                "done": self.done,
                "total": self.trials,
                "failed": self.failed,
                "error": self.error,
                "seconds_left": each * (self.trials - self.done),
                "latency": self._latency(_best),
            }
        )
        if self.failed == self.done >= FIRST_FAILURES:
            raise UserError(all_failed(self.done, self.error))

    def _latency(self, seconds: Callable[[TunedOperator], float]) -> float | None:
        """Of each problem the fastest of its operators, for all of its calls."""
        problems: dict[Any, float] = {}
        for operator in self.operators:
            own = operator.calls * seconds(operator)
            problems[operator.problem] = min(own, problems.get(operator.problem, float("inf")))
        total = sum(problems.values())
        return total if total < float("inf") else None


def _best(operator: TunedOperator) -> float:
    return min(operator.tried, default=float("inf"))
