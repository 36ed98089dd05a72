"""Methods compared: each learns the same tasks, each task in a process of its own, and what it cost and reached.

A trial is a task learned by a method with a seed. What it gave is kept in a file of its own, so that a comparison that
was stopped goes on, and a process that dies costs its trial alone.
"""

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from ksm_hw.errors import UserError
from ksm_hw.files.written import explained, written_file
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.learn import measure_accuracy
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.methods.table import method_named
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.report.page import INK, axes_of, figure_element, table_element, write_html
from ksm_hw.report.terminal import TextTable, megabytes


@dataclass(frozen=True)
class Trial:
    """A task that a method learns with a seed.

    Attributes:
        method: its name.
        task: its name.
        data: set or folder of its images.
        seed: of everything random.
    """

    method: str
    task: str
    data: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a trial gave.

    Attributes:
        method, task, seed: of the trial.
        arguments: of `ksm-hw train`, but those of the trial.
        accuracy: on the test images when it was learned, in 0…1.
        cpu_seconds: of the process, from its start to its end.
        seconds: of its epochs.
        memory_bytes: the most that the process held.
        pack_bytes: of the task's tensors at rest.
    """

    method: str
    task: str
    seed: int
    arguments: tuple[str, ...]
    accuracy: float
    cpu_seconds: float
    seconds: float
    memory_bytes: int
    pack_bytes: int


@dataclass(frozen=True)
class Summary:
    """A method on a task, over the seeds.

    Attributes:
        method, task: their names.
        accuracies: of each seed, in 0…1.
        forgotten: by how much each seed's accuracy was higher when it was learned than after the last task.
        added_bytes: bytes at rest of a task: of packs, and of backbones beyond one, over the number of tasks.
        cpu_seconds, memory_bytes: means of the seeds.
    """

    method: str
    task: str
    accuracies: tuple[float, ...]
    forgotten: tuple[float, ...]
    added_bytes: float
    cpu_seconds: float
    memory_bytes: float


def bundle_of(folder: Path, trial: Trial) -> Path:
    """The bundle that a trial learns into: one a method and seed, and a task where the method changes all weights."""
    own = f"-{trial.task}" if method_named(trial.method).alone else ""
    return folder / "bundles" / f"{trial.method}-{trial.seed}{own}"


def run_trial(trial: Trial, folder: Path, arguments: Sequence[str]) -> Outcome:
    """Learns a task in a process of its own, or gives what an earlier run of the same trial gave.

    Args:
        trial: what is learned.
        folder: of the comparison.
        arguments: of `ksm-hw train`, but those of the trial.

    Raises:
        UserError: the folder was begun with other arguments, or the process failed.
    """
    path = folder / "trials" / f"{trial.method}-{trial.task}-{trial.seed}.json"
    if path.exists():
        outcome = _read(path)
        if outcome.arguments != tuple(arguments):
            raise UserError(
                f"{path} was learned with {shlex.join(outcome.arguments)}, not {shlex.join(arguments)}. Give the same, "
                "or another -o FOLDER."
            )
        return outcome
    own = ("--method", trial.method, "--task", trial.task, "--data", trial.data, "--seed", str(trial.seed))
    where = ("--bundle", str(bundle_of(folder, trial)), "--json")
    command = [sys.executable, "-m", "ksm_hw.cli", "train", *own, *where, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(
            f"Task '{trial.task}' was not learned by {trial.method}; the reason is above. The others stay: the same "
            "command goes on."
        )
    found = json.loads(said)
    outcome = Outcome(
        trial.method, trial.task, trial.seed, tuple(arguments), found["accuracy"],
        usage.ru_utime + usage.ru_stime, found["seconds"], usage.ru_maxrss * 1024, found["pack_bytes"],
    )  # fmt: skip
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")
    return outcome


def _read(path: Path) -> Outcome:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcome)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it to learn the task again.") from error


def compare(
    trials: Sequence[Trial],
    folder: Path,
    arguments: Callable[[str], Sequence[str]],
    on_trial: Callable[[Trial, Outcome], None] = lambda trial, outcome: None,
) -> list[Summary]:
    """Runs what is missing of a comparison, task by task, and looks at the older tasks when the last is learned.

    Args:
        trials: all of them; those of a method and seed in the order in which they are learned.
        folder: of the comparison.
        arguments: of `ksm-hw train` for a method, but those of the trial.
        on_trial: called after each.

    Raises:
        UserError: a trial failed, or the folder was begun with other arguments.
    """
    outcomes = {}
    for trial in trials:
        outcomes[trial] = run_trial(trial, folder, arguments(trial.method))
        on_trial(trial, outcomes[trial])
    now = _accuracies_now(trials, folder)
    methods = dict.fromkeys(trial.method for trial in trials)
    added = {name: _added_bytes([trial for trial in trials if trial.method == name], folder) for name in methods}
    summaries = []
    for method, task in dict.fromkeys((trial.method, trial.task) for trial in trials):
        mine = [trial for trial in trials if (trial.method, trial.task) == (method, task)]
        found = [outcomes[trial] for trial in mine]
        summaries.append(
            Summary(
                method,
                task,
                tuple(outcome.accuracy for outcome in found),
                tuple(outcomes[trial].accuracy - now[trial] for trial in mine),
                added[method],
                statistics.mean(outcome.cpu_seconds for outcome in found),
                statistics.mean(outcome.memory_bytes for outcome in found),
            )
        )
    return summaries


def _accuracies_now(trials: Sequence[Trial], folder: Path) -> dict[Trial, float]:
    """The accuracy of each trial's task in its bundle as it is now."""
    found = {}
    for data in dict.fromkeys(trial.data for trial in trials):
        images = load_task_data(data)
        for trial in trials:
            if trial.data == data:
                bundle = load_bundle(bundle_of(folder, trial))
                pack = bundle.packs[trial.task]
                found[trial] = measure_accuracy(task_module(bundle, pack), images.test, pack.preprocessing)
    return found


def _added_bytes(trials: Sequence[Trial], folder: Path) -> float:
    """Bytes at rest of a task of a method: of packs, and of backbones beyond the one that any method needs."""
    total = 0.0
    for seed in {trial.seed for trial in trials}:
        folders = dict.fromkeys(bundle_of(folder, trial) for trial in trials if trial.seed == seed)
        bundles = [load_bundle(each) for each in folders]
        backbones = [sum(array.nbytes for array in bundle.tensors.values()) for bundle in bundles]
        total += sum(pack.nbytes for bundle in bundles for pack in bundle.packs.values())
        total += sum(backbones) - min(backbones)
    return total / len(trials)


def comparison_table(summaries: Sequence[Summary]) -> TextTable:
    """What terminal and page show alike."""
    columns = ("task", "method", "accuracy", "forgotten", "CPU s", "MB memory", "MB a task")
    rows = tuple(
        (
            summary.task,
            TITLES[summary.method],
            _spread(summary.accuracies),
            f"{statistics.mean(summary.forgotten):.1%}",
            f"{summary.cpu_seconds:.0f}",
            f"{summary.memory_bytes / 1e6:.0f}",
            megabytes(summary.added_bytes),
        )
        for summary in sorted(summaries, key=lambda each: each.task)
    )
    note = "Accuracy: mean of the seeds, with their standard deviation. MB a task: packs, and backbones beyond one."
    return TextTable("Methods compared", columns, rows, note)


def _spread(accuracies: Sequence[float]) -> str:
    mean = f"{statistics.mean(accuracies):.1%}"
    return f"{mean} ± {statistics.stdev(accuracies):.1%}" if len(accuracies) > 1 else mean


def write_comparison(summaries: Sequence[Summary], said: str, path: Path) -> None:
    """Writes the table and the plots as a page.

    Args:
        summaries: of each method on each task.
        said: how it was made, as text.
        path: of the page.

    Raises:
        UserError: the file cannot be written.
    """
    figures = {
        "Accuracy against training time": _figure(summaries, lambda each: each.cpu_seconds, "CPU seconds a task"),
        "Accuracy against bytes": _figure(summaries, lambda each: each.added_bytes / 1e6, "megabytes a task"),
    }
    parts = [table_element(comparison_table(summaries))]
    parts += [figure_element(figure, caption) for caption, figure in figures.items()]
    write_html("Methods compared", said, "\n".join(parts), path)


def _figure(summaries: Sequence[Summary], across: Callable[[Summary], float], label: str) -> Figure:
    """A plot a task: each method at its accuracy, with the spread of the seeds."""
    tasks = list(dict.fromkeys(summary.task for summary in summaries))
    figure = Figure(figsize=(1 + 4.2 * len(tasks), 3.6), layout="constrained")
    for axes, task in zip(axes_of(figure, len(tasks)), tasks, strict=True):
        for summary in (each for each in summaries if each.task == task):
            mean = 100 * statistics.mean(summary.accuracies)
            reach = [[mean - 100 * min(summary.accuracies)], [100 * max(summary.accuracies) - mean]]
            axes.errorbar([across(summary)], [mean], yerr=reach, fmt="o", capsize=3)
            place = (across(summary), mean)
            axes.annotate(TITLES[summary.method], place, (4, 4), textcoords="offset points", color=INK)
        axes.set_title(task, color=INK)
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel("accuracy, %", color=INK)
        axes.set_xlim(left=0)
    return figure
