"""Measures the latency of all engines on one network: each in its own process, in rounds that take turns."""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ksm_hw.report.timing import NOISE_LIMIT
from peers.catalogue import Engine
from peers.engine_process import EngineProcess, engine_process
from peers.engines.artifacts import artifact_folder
from peers.failures import EngineError
from peers.noise import Quiet, Watch, outliers
from peers.preparation import compile_artifact, prepare_engine
from peers.results import Result, wrong_outputs

SECONDS_A_ROUND = 0.5
MOST_REPEATS = 3  # Of one turn.

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
        tuned: folder of tuning records for `ksm-hw-tuned`.
    """

    network: str
    folder: Path
    threads: int
    engines: tuple[Engine, ...]
    rounds: int
    tuned: Path | None


@dataclass
class _Running:
    """An engine that was started, with a turn for each round so far."""

    engine: Engine
    process: EngineProcess
    result: Result
    turns: list[tuple[list[float], Quiet]] = field(default_factory=list)
    repeated: int = 0

    def turn(self, watch: Watch) -> tuple[list[float], Quiet]:
        """Measures for half a second, while the machine is watched."""
        watch.start(self.process.cpu_seconds())
        seconds = self.process.ask(seconds=SECONDS_A_ROUND)["seconds"]
        return seconds, watch.stop(self.process.cpu_seconds())

    def quiet_turn(self, watch: Watch) -> tuple[list[float], Quiet]:
        """Measures until the machine is quiet, a few times at most, and gives the turn with the least disturbance."""
        turns = [self.turn(watch)]
        while turns[-1][1].noisy and len(turns) <= MOST_REPEATS:
            turns.append(self.turn(watch))
            self.repeated += 1
        return min(turns, key=lambda turn: (turn[1].noisy, turn[1].foreign_cores))

    def measured(self) -> Result:
        """The result so far."""
        return dataclasses.replace(
            self.result,
            rounds=tuple(tuple(seconds) for seconds, _ in self.turns),
            repeated=self.repeated,
            disturbed=sum(quiet.noisy for _, quiet in self.turns),
        )


def measure_network(plan: Plan, watch: Watch, on_step: OnStep, on_round: OnRound) -> None:
    """Measures all engines on a network; `on_round` gets what there is after each round, failures included."""
    with contextlib.ExitStack() as stack:
        results: dict[str, Result] = {}
        running: list[_Running] = []
        for engine in plan.engines:
            on_step(f"start {engine.title}")
            try:
                running.append(_started(plan, engine, stack))
                results[engine.name] = running[-1].result
            except EngineError as error:
                results[engine.name] = _unmeasured(plan, engine, str(error))
            on_round(list(results.values()))

        def take_turn(one: _Running, replaced: int | None = None) -> None:
            try:
                turn = one.quiet_turn(watch)
            except EngineError as error:
                results[one.engine.name] = _unmeasured(plan, one.engine, str(error))
                running.remove(one)
                return
            if replaced is None:
                one.turns.append(turn)
            else:
                one.turns[replaced] = turn
                one.repeated += 1
            results[one.engine.name] = one.measured()

        for number in range(plan.rounds):
            # Each engine comes first in turn, so that none always finds the machine as the same other left it.
            first = number % len(running) if running else 0
            for one in running[first:] + running[:first]:
                on_step(f"round {number + 1} of {plan.rounds}: {one.engine.title}")
                take_turn(one)
            on_round(list(results.values()))
        for _ in range(MOST_REPEATS):
            for one in list(running):
                medians = [statistics.median(seconds) for seconds, _ in one.turns]
                for apart in outliers(medians, NOISE_LIMIT):
                    on_step(f"again, for a round lay apart: {one.engine.title}")
                    take_turn(one, apart)
        on_round(list(results.values()))


def _started(plan: Plan, engine: Engine, stack: contextlib.ExitStack) -> _Running:
    task = plan.folder / "task-00"
    prepare_engine(engine, task)
    if engine.ours:
        artifact = artifact_folder(plan.folder, plan.threads, engine.variant)
        compile_artifact(plan.folder, artifact, plan.threads, 1, plan.tuned if engine.variant == "tuned" else None)
    arguments = (engine.module, engine.variant, task, str(plan.threads))
    started = engine_process(engine.environment, "peers.serve", *arguments, variables=engine.variables)
    process = stack.enter_context(started)
    if failure := wrong_outputs(process.facts["error_of_logits"]):
        raise EngineError(failure)
    result = dataclasses.replace(_unmeasured(plan, engine, "stopped before its first round"), **process.facts)
    return _Running(engine, process, result)


def _unmeasured(plan: Plan, engine: Engine, failure: str) -> Result:
    return Result(plan.network, plan.threads, engine.name, engine.title, engine.ours, failure=failure)
