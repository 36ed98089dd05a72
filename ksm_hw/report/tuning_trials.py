"""A sweep of tunes: the operators of tasks for several targets, each by `ksm-hw tune` in a process of its own.

Records serve every task of a backbone. Tasks are tuned apart where they leave out other channels that are 0, as those
from before a network grew, or where only one will be deployed. A sweep is of one precision.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.report.terminal import TextTable, milliseconds
from ksm_hw.report.trials import Kind, Ran, run_trials


@dataclass(frozen=True)
class TuningTrial:
    """A task of a bundle, or `all`, that is tuned for a target."""

    task: str
    target: str

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.target}+{self.task}"  # No task has a + in its name.

    def failure(self, why: str) -> UserError:
        """That it failed, and the others did not."""
        return UserError(
            f"{self.task} was not tuned for {self.target}; {why}. The others stay: the same command goes on."
        )


@dataclass(frozen=True)
class Tuned:
    """What a trial gave.

    Attributes:
        task, target: of the trial.
        arguments: of `ksm-hw tune`, but those of the trial.
        records: the folder for `ksm-hw compile --tuned`.
        operators: how many different ones were tuned.
        trials: measurements in the records; `failed` those without a result.
        latency: seconds of the best schedules over all calls of the operators; `default_latency` those of the schedules
            that are taken without tuning. None where not all of them were measured.
        cpu_seconds: of the process.
    """

    task: str
    target: str
    arguments: tuple[str, ...]
    records: str
    operators: int
    trials: int
    failed: int
    latency: float | None
    default_latency: float | None
    cpu_seconds: float


def tune_all(
    trials: Sequence[TuningTrial],
    folder: Path,
    arguments: Callable[[TuningTrial], Sequence[str]],
    jobs: int = 1,
    on_trial: Callable[[TuningTrial, Tuned], None] = lambda *_: None,
) -> list[Tuned]:
    """Runs what is missing of a sweep, as `run_trials`, and returns it in the order of the trials.

    Args:
        trials: all of them.
        folder: of the sweep.
        arguments: of `ksm-hw tune` for a trial, but its task, its target and the records.
        jobs: trials beside each other: those that are measured on one machine disturb each other.
        on_trial: called after each.

    Raises:
        UserError: trials failed, or the folder was begun with other arguments.
    """

    def records_of(trial: TuningTrial) -> str:
        return str(folder / "records" / trial.name)

    def command(trial: TuningTrial) -> list[str]:
        own = ["--target", trial.target, "--task", trial.task, "-o", records_of(trial), "--json"]
        return ["tune", *own, *arguments(trial)]

    def outcome(trial: TuningTrial, given: tuple[str, ...], ran: Ran) -> Tuned:
        said = ran.said
        return Tuned(
            trial.task, trial.target, given, records_of(trial), said["operators"], said["trials"], said["failed"],
            said["latency"], said["default_latency"], ran.cpu_seconds,
        )  # fmt: skip

    kind = Kind(command, arguments, outcome, Tuned)
    found = run_trials([[trial] for trial in trials], kind, folder, jobs, on_trial)
    # The folder may have another path than when they were made.
    return [dataclasses.replace(found[trial], records=records_of(trial)) for trial in trials]


def tuning_table(found: Sequence[Tuned]) -> TextTable:
    """What tunes found, a row a trial."""
    rows = tuple(
        (
            f"{each.target}, {each.task}",
            *map(str, (each.operators, each.trials, each.failed)),
            *("—" if seconds is None else milliseconds(seconds) for seconds in (each.default_latency, each.latency)),
            f"{each.cpu_seconds:.0f}",
        )
        for each in found
    )
    columns = ("target and task", "operators", "trials", "failed", "default ms", "tuned ms", "CPU s")
    return TextTable(
        "Tuned", columns, rows, "ms: all calls of the operators, with default and with the best schedules."
    )
