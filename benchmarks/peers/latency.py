"""Measures the latency of all engines on one network: each in its own process, in rounds that take turns."""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ksm_hw.report.timing import NOISE_LIMIT
from peers.catalogue import Engine, Precision
from peers.engine_process import EngineProcess, serving_process
from peers.failures import EngineError
from peers.noise import Quiet, Watch, outliers
from peers.preparation import TASK, check_prepared, compile_artifact, prepare_engine
from peers.results import Result, unlike_float32, wrong_outputs

SECONDS_A_ROUND = 0.5

Turn = tuple[list[float], Quiet]
"""Seconds of each inference, and how quiet the machine was."""

OnStep = Callable[[str], None]
OnRound = Callable[[Sequence[Result]], None]


@dataclass(frozen=True)
class Plan:
    """What is measured of one network.

    Attributes:
        network: name of the catalogue; `folder` where it lies.
        threads: of each engine.
        engines: in the order of the tables.
        rounds: how many.
        repeats: how often a turn is measured again at most, because of noise.
        trials: of tuning for `ksm-hw-tuned`.
        precision: of all engines.
        prepared: that everything is made already, artifacts of ksm-hw included.
    """

    network: str
    folder: Path
    threads: int
    engines: tuple[Engine, ...]
    rounds: int
    repeats: int
    trials: int
    precision: Precision = "float32"
    prepared: bool = False


@dataclass
class _Running:
    """An engine that was started, with a turn for each round so far."""

    engine: Engine
    process: EngineProcess
    result: Result
    turns: list[Turn] = field(default_factory=list)
    repeated: int = 0
    failure: str | None = None

    def take_turn(self, watch: Watch, repeats: int, replaced: int | None = None) -> None:
        """Measures a round, or one again. An engine that fails now has failed, whatever it did before."""
        try:
            turn = self._quiet_turn(watch, repeats)
        except EngineError as error:
            self.failure = str(error)
            return
        if replaced is None:
            self.turns.append(turn)
            return
        self.repeated += 1
        if turn[1].disturbance <= self.turns[replaced][1].disturbance:
            self.turns[replaced] = turn

    def rounds_apart(self) -> list[int]:
        """The rounds that lie apart from the others."""
        return outliers([statistics.median(seconds) for seconds, _ in self.turns], NOISE_LIMIT)

    def measured(self) -> Result:
        """The result so far."""
        if self.failure is not None or not self.turns:
            return dataclasses.replace(self.result, failure=self.failure or "stopped before its first round")
        counted = quieter_half(self.turns)
        return dataclasses.replace(
            self.result,
            rounds=tuple(tuple(seconds) for seconds, _ in counted),
            repeated=self.repeated,
            disturbed=sum(quiet.noisy for _, quiet in counted),
        )

    def _quiet_turn(self, watch: Watch, repeats: int) -> Turn:
        """Measures until the machine is quiet, a few times at most, and gives the turn with the least disturbance."""
        turns = [self._turn(watch)]
        while turns[-1][1].noisy and len(turns) <= repeats:
            turns.append(self._turn(watch))
            self.repeated += 1
        return min(turns, key=lambda turn: turn[1].disturbance)

    def _turn(self, watch: Watch) -> Turn:
        watch.start(self.process.cpu_seconds())
        seconds = self.process.ask(seconds=SECONDS_A_ROUND)["seconds"]
        return seconds, watch.stop(self.process.cpu_seconds())


def quieter_half(turns: Sequence[Turn]) -> list[Turn]:
    """Those that count: half of them, of an odd number the greater half, in which the machine was least disturbed.

    How fast the engine was has no say in it, and every engine has as many.
    """
    return sorted(turns, key=lambda turn: turn[1].disturbance)[: -(-len(turns) // 2)]


def measure_network(plan: Plan, watch: Watch, on_step: OnStep, on_round: OnRound) -> None:
    """Measures all engines on a network; `on_round` gets what there is after each round, failures included."""
    with contextlib.ExitStack() as stack:
        engines = [_started(plan, engine, stack, on_step) for engine in plan.engines]

        def running() -> list[_Running]:
            return [engine for engine in engines if isinstance(engine, _Running) and engine.failure is None]

        def tell() -> None:
            on_round([engine.measured() if isinstance(engine, _Running) else engine for engine in engines])

        tell()
        for number in range(plan.rounds):
            # Each engine comes first in turn, so that none always finds the machine as the same other left it.
            order = running()
            first = number % max(1, len(order))
            for one in order[first:] + order[:first]:
                on_step(f"round {number + 1} of {plan.rounds}: {one.engine.title}")
                one.take_turn(watch, plan.repeats)
            tell()
        for _ in range(plan.repeats):
            for one in running():
                for apart in one.rounds_apart():
                    on_step(f"round {apart + 1} again, for it lay apart: {one.engine.title}")
                    one.take_turn(watch, plan.repeats, replaced=apart)
            tell()


def prepare_all(plan: Plan, on_step: OnStep) -> list[Result]:
    """Makes what all engines read, and gives those that failed."""
    failed = []
    for engine in plan.engines:
        on_step(f"prepare {engine.title}")
        try:
            prepare(plan, engine)
        except EngineError as error:
            failed.append(_result(plan, engine, str(error)))
    return failed


def _result(plan: Plan, engine: Engine, failure: str | None = None) -> Result:
    return Result(plan.network, plan.threads, engine.name, engine.title, engine.ours, failure=failure)


def prepare(plan: Plan, engine: Engine) -> None:
    """Makes what an engine reads, and compiles where it is ksm-hw.

    Raises:
        EngineError: that fails; the message is the reason.
    """
    prepare_engine(engine, plan.folder / TASK)
    if engine.ours:
        compile_artifact(plan.folder, engine.variant, plan.threads, trials=plan.trials)


def _started(plan: Plan, engine: Engine, stack: contextlib.ExitStack, on_step: OnStep) -> _Running | Result:
    """The engine, or why it failed."""
    on_step(f"prepare {engine.title}")
    result = _result(plan, engine)
    try:
        if plan.prepared:
            check_prepared(engine, plan.folder / TASK)
        else:
            prepare(plan, engine)
        process = stack.enter_context(serving_process(engine, plan.folder / TASK, plan.threads, plan.precision))
    except EngineError as error:
        return dataclasses.replace(result, failure=str(error))
    result = dataclasses.replace(result, **process.facts)
    agreement, error = result.agreement, process.facts["error_of_logits"]
    if failure := wrong_outputs(error) if agreement is None else unlike_float32(agreement, error):
        return dataclasses.replace(result, failure=failure)
    return _Running(engine, process, result)
