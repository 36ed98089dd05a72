"""Methods compared: each learns the same tasks, and what it cost and reached, as a table and as a page."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ksm_hw.learning.curves import read_curve
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.learn import measure_accuracy
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.starting_weights import PRETRAINED
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.task_pack import bytes_at_rest
from ksm_hw.models.task_module import task_module
from ksm_hw.report.deployed_methods import Deployed
from ksm_hw.report.learning_trials import (
    Arguments,
    Learned,
    LearningTrial,
    OnTrial,
    bundle_of,
    curve_of,
    learn_trials,
    variant_of,
)
from ksm_hw.report.page import INK, axes_of, figure_element, table_element, write_html
from ksm_hw.report.terminal import TextTable, megabytes, milliseconds
from ksm_hw.report.timing import NOISE_LIMIT
from ksm_hw.report.trials import Runner, keep, kept


@dataclass(frozen=True)
class Afterwards:
    """A method and seed when the last task is learned.

    Attributes:
        accuracies: of each task in its bundle as it is then, in 0…1.
        added_bytes: bytes at rest of a task: of packs, and of backbones beyond one, over the number of tasks.
    """

    accuracies: dict[str, float]
    added_bytes: float


@dataclass(frozen=True)
class Summary:
    """A method on a task, over the seeds.

    Attributes:
        method, task: their names.
        machine: that it was learned on.
        accuracies: of each seed, in 0…1.
        forgotten: by how much each seed's accuracy was higher when it was learned than after the last task.
        added_bytes: of a task at rest, see `Afterwards`; mean of the seeds.
        seconds: of the epochs.
        cpu_seconds: of the process.
        memory_bytes: the most that the process held; `gpu_bytes` the most on the GPU. All four are means of the seeds.
        deployed: compiled, of the first seed; None where it was not.
        curve: of the first seed, seconds since the start and accuracy after each epoch; empty where nobody wrote it.
        granularity, scale_bits: of a trial (`LearningTrial`).
    """

    method: str
    task: str
    machine: str
    accuracies: tuple[float, ...]
    forgotten: tuple[float, ...]
    added_bytes: float
    seconds: float
    cpu_seconds: float
    memory_bytes: float
    gpu_bytes: float
    deployed: Deployed | None = None
    curve: tuple[tuple[float, float], ...] = ()
    granularity: Granularity | None = None
    scale_bits: ScaleBits | None = None

    @property
    def variant(self) -> str:
        """As `learning_trials.variant_of`."""
        return variant_of(self.method, self.granularity, self.scale_bits)

    @property
    def title(self) -> str:
        """The variant, for a person."""
        granularity = [] if self.granularity is None else [f"by {self.granularity}"]
        bits = [] if self.scale_bits is None else [f"{self.scale_bits} bits"]
        return ", ".join([TITLES[self.method], *granularity, *bits])


def compare(
    trials: Sequence[LearningTrial],
    folder: Path,
    arguments: Arguments,
    jobs: int = 1,
    whole: bool = False,
    on_trial: OnTrial = lambda trial, outcome: None,
    runner: Runner | None = None,
) -> list[Summary]:
    """Runs what is missing of a comparison, and looks at the older tasks when the last is learned.

    Args:
        trials: all of them; those of a method and seed in the order in which they are learned.
        folder: of the comparison.
        arguments: of `ksm-hw train` for a method, but those of the trial.
        jobs: trials beside each other.
        whole: whether named sets give all of their images, as the arguments say too.
        on_trial: called after each.
        runner: where trials run; without one in processes here.

    Raises:
        UserError: a trial failed, or the folder was begun with other arguments.
    """
    outcomes = learn_trials(trials, folder, arguments, jobs, on_trial, runner)
    afterwards = {
        (variant, seed): _afterwards(
            [trial for trial in trials if (trial.variant, trial.seed) == (variant, seed)], folder, outcomes, whole
        )
        for variant, seed in dict.fromkeys((trial.variant, trial.seed) for trial in trials)
    }
    summaries = []
    for variant, task in dict.fromkeys((trial.variant, trial.task) for trial in trials):
        mine = [trial for trial in trials if (trial.variant, trial.task) == (variant, task)]
        found = [outcomes[trial] for trial in mine]
        then = [afterwards[variant, trial.seed] for trial in mine]
        summaries.append(
            Summary(
                mine[0].method,
                task,
                ", ".join(dict.fromkeys(outcome.machine for outcome in found)),
                tuple(outcome.accuracy for outcome in found),
                tuple(one.accuracy - after.accuracies[task] for one, after in zip(found, then, strict=True)),
                statistics.mean(after.added_bytes for after in then),
                statistics.mean(outcome.seconds for outcome in found),
                statistics.mean(outcome.cpu_seconds for outcome in found),
                statistics.mean(outcome.memory_bytes for outcome in found),
                statistics.mean(outcome.gpu_bytes for outcome in found),
                curve=tuple(read_curve(curve_of(folder, mine[0]))),
                granularity=mine[0].granularity,
                scale_bits=mine[0].scale_bits,
            )
        )
    return summaries


def _afterwards(
    trials: Sequence[LearningTrial], folder: Path, outcomes: Mapping[LearningTrial, Learned], whole: bool
) -> Afterwards:
    """What became of the tasks of a method and seed, which is kept: their bundles may go."""
    path = folder / "afterwards" / f"{trials[0].variant}-{trials[0].seed}.json"
    tasks = {trial.task for trial in trials}
    if path.exists() and (known := kept(path, Afterwards)).accuracies.keys() == tasks:
        return known
    bundles = {each: load_bundle(each) for each in dict.fromkeys(bundle_of(folder, trial) for trial in trials)}
    accuracies = {
        trial.task: _accuracy_now(trial, bundles[bundle_of(folder, trial)], outcomes[trial], whole) for trial in trials
    }
    backbones = [sum(array.nbytes for array in bundle.tensors.values()) for bundle in bundles.values()]
    # Of backbones, those beyond the one that any method needs.
    total = sum(backbones) - min(backbones)
    packs = [pack for bundle in bundles.values() for task, pack in bundle.packs.items() if task in tasks]
    total += sum(map(bytes_at_rest, packs))
    found = Afterwards(accuracies, total / len(trials))
    keep(found, path)
    return found


def _accuracy_now(trial: LearningTrial, bundle: Bundle, outcome: Learned, whole: bool) -> float:
    """The accuracy of a trial's task in its bundle, measured where the weights are not those of its start."""
    pack = bundle.packs[trial.task]
    if len(bundle.packs) == 1 or bundle.backbone_sha256 == pack.facts.get(PRETRAINED):
        return outcome.accuracy
    # On the CPU, as it was when the task was learned: a GPU rounds otherwise, and images at a border change sides.
    return measure_accuracy(task_module(bundle, pack), load_task_data(trial.data, whole=whole).test, pack.preprocessing)


def comparison_tables(summaries: Sequence[Summary]) -> list[TextTable]:
    """What terminal and page show alike: what methods reach, what learning took, and what their tasks cost compiled.

    Each fits 80 columns with names of tasks of up to 13 letters.
    """
    by_task = sorted(summaries, key=lambda each: each.task)
    tables = [_reached_table(by_task), _learning_table(by_task)]
    compiled = [(each, each.deployed) for each in by_task if each.deployed is not None]
    return [*tables, _deployed_table(compiled)] if compiled else tables


def _reached_table(summaries: Sequence[Summary]) -> TextTable:
    rows = tuple(
        (
            summary.task,
            summary.title,
            _spread(summary.accuracies),
            f"{statistics.mean(summary.forgotten):.1%}",
            megabytes(summary.added_bytes),
        )
        for summary in summaries
    )
    note = "Accuracy: mean of the seeds, with their standard deviation. MB a task: packs, and backbones beyond one."
    return TextTable("Methods compared", ("task", "method", "accuracy", "forgotten", "MB a task"), rows, note)


def _learning_table(summaries: Sequence[Summary]) -> TextTable:
    rows = tuple(
        (
            summary.task,
            summary.title,
            f"{summary.seconds:.0f}",
            f"{summary.cpu_seconds:.0f}",
            f"{summary.memory_bytes / 1e6:.0f}",
            f"{summary.gpu_bytes / 1e6:.0f}",
        )
        for summary in summaries
    )
    machines = ", ".join(dict.fromkeys(summary.machine for summary in summaries))
    note = f"Learned on {machines}. s: of the epochs; CPU s: of the process. Means of the seeds."
    return TextTable("What learning took", ("task", "method", "s", "CPU s", "MB memory", "MB GPU"), rows, note)


def _deployed_table(compiled: Sequence[tuple[Summary, Deployed]]) -> TextTable:
    def shown(seconds: float | None) -> str:
        return "—" if seconds is None else milliseconds(seconds)

    rows = tuple(
        (
            summary.task,
            summary.title,
            *map(shown, (times.latency, times.switch, times.int8_latency, times.int8_switch)),
        )
        for summary, times in compiled
    )
    columns = ("task", "method", "latency", "switch", "int8\nlatency", "int8\nswitch")
    machines = ", ".join(dict.fromkeys(times.machine for _, times in compiled))
    note = f"Medians, of the first seed's bundles, on {machines}."
    noisy = dict.fromkeys(summary.title for summary, times in compiled if times.noisy)
    if noisy:
        note += f" Rounds differ by more than {NOISE_LIMIT:.0%}: {', '.join(noisy)}."
    return TextTable("Compiled for this machine, milliseconds", columns, rows, note)


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
    parts = [table_element(table) for table in comparison_tables(summaries)]
    parts += [figure_element(figure, caption) for caption, figure in comparison_figures(summaries).items()]
    write_html("Methods compared", said, "\n".join(parts), path)


def comparison_figures(summaries: Sequence[Summary]) -> dict[str, Figure]:
    """The plots, by their captions."""
    figures = {
        "Accuracy against training time": _figure(summaries, lambda each: each.seconds, "seconds of epochs a task"),
        "Accuracy against bytes": _figure(summaries, lambda each: each.added_bytes / 1e6, "megabytes a task"),
    }
    if drawn := [each for each in summaries if each.curve]:
        figures["Accuracy after each epoch, of the first seed"] = _curves(drawn)
    return figures


def _curves(summaries: Sequence[Summary]) -> Figure:
    """A plot a task: the curve of each method."""
    tasks = list(dict.fromkeys(summary.task for summary in summaries))
    figure = Figure(figsize=(1 + 4.2 * len(tasks), 3.6), layout="constrained")
    for axes, task in zip(axes_of(figure, len(tasks)), tasks, strict=True):
        for summary in (each for each in summaries if each.task == task):
            seconds, accuracies = zip(*summary.curve, strict=True)
            axes.plot(seconds, [100 * each for each in accuracies], marker=".", label=summary.title)
        axes.legend(fontsize="small")
        _name_axes(axes, task, "seconds of epochs")
    return figure


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
            axes.annotate(summary.title, place, (4, 4), textcoords="offset points", color=INK)
        _name_axes(axes, task, label)
    return figure


def _name_axes(axes: Axes, task: str, across: str) -> None:
    axes.set_title(task, color=INK)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_xlim(left=0)
