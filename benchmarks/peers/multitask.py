"""Measures what several tasks over one backbone cost: memory, and the time of a switch.

ksm-hw has them in one artifact. The other engines are not made for this: they hold a model for each task, or load the
next task's model in the place of the last.
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

from peers.catalogue import Engine
from peers.engine_process import engine_process
from peers.failures import EngineError
from peers.latency import OnStep
from peers.multitask_results import ARTIFACT, HELD, RELOADED, TaskCost
from peers.noise import Watch
from peers.preparation import compile_artifact, prepare_engine, prepare_tasks
from peers.results import wrong_outputs

# What each engine reads of a task; those that are compared.
FILES = {"onnxruntime": ("network.onnx",), "openvino": ("network.onnx",), "mnn": ("network.mnn",)}
FEWEST_SWITCHES = 20


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """What is measured.

    Attributes:
        network: name of the catalogue.
        threads: of each engine.
        engines: of which those that take part here are measured.
        counts: of tasks.
        repeats: how often switches are measured again at most, because of noise.
        trials: of tuning for `ksm-hw-tuned`.
    """

    network: str
    threads: int
    engines: tuple[Engine, ...]
    counts: tuple[int, ...]
    repeats: int
    trials: int


def measure_tasks(plan: TaskPlan, watch: Watch, on_step: OnStep, on_cost: Callable[[TaskCost], None]) -> None:
    """Measures every engine, way and number of tasks, one process after the other; `on_cost` gets each.

    Raises:
        EngineError: the networks cannot be made.
    """
    on_step(f"make {max(plan.counts)} tasks")
    folder = prepare_tasks(plan.network, max(plan.counts))
    engines = [engine for engine in plan.engines if engine.ours or engine.name in FILES]
    for count in plan.counts:
        for engine in engines:
            for way in (ARTIFACT,) if engine.ours else (HELD, RELOADED):
                cost = TaskCost(plan.network, plan.threads, engine.name, engine.title, way, count)
                try:
                    file_bytes = _prepare(plan, engine, folder, count, on_step)
                    on_step(f"{count} tasks: {engine.title}, {way}")
                    on_cost(
                        dataclasses.replace(_measured(cost, engine, folder, watch, plan.repeats), file_bytes=file_bytes)
                    )
                except EngineError as error:
                    on_cost(dataclasses.replace(cost, failure=str(error)))


def _prepare(plan: TaskPlan, engine: Engine, folder: Path, count: int, on_step: OnStep) -> int:
    """Makes the files of an engine's first tasks, and gives their bytes."""
    if engine.ours:
        on_step(f"compile {count} tasks: {engine.title}")
        prepare_engine(engine, folder)
        artifact = compile_artifact(folder, engine.variant, plan.threads, count, plan.trials)
        return sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
    tasks = [folder / f"task-{number:02}" for number in range(count)]
    for task in tasks:
        on_step(f"prepare {task.name}: {engine.title}")
        prepare_engine(engine, task)
    return sum((task / name).stat().st_size for task in tasks for name in FILES[engine.name])


def _measured(cost: TaskCost, engine: Engine, folder: Path, watch: Watch, repeats: int) -> TaskCost:
    arguments = (engine.module, engine.variant, cost.way, folder, str(cost.tasks), str(cost.threads))
    with engine_process(engine.environment, "peers.multitask_process", *arguments) as process:
        if failure := wrong_outputs(process.facts["error_of_logits"]):
            raise EngineError(failure)
        cost = dataclasses.replace(cost, **process.facts)
        # With one task there is nothing to switch to: a session that has it already does nothing.
        if cost.way == HELD or cost.tasks == 1:
            return cost
        for _ in range(repeats + 1):
            watch.start(process.cpu_seconds())
            switches: list[float] = []
            firsts: list[float] = []
            while len(switches) < FEWEST_SWITCHES:
                answer = process.ask()
                switches += answer["switch_seconds"]
                firsts += answer["first_logits_seconds"]
            cost = dataclasses.replace(
                cost,
                switch_seconds=statistics.median(switches),
                first_logits_seconds=statistics.median(firsts),
                disturbed=watch.stop(process.cpu_seconds()).noisy,
            )
            if not cost.disturbed:
                break
        return cost
