"""Trials of a comparison of methods: each a task that a method learns, by `ksm-hw train`."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.learning.methods.table import method_named
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.report.trials import Kind, Ran, Runner, run_trials

_OWN: tuple[None] = (None,)  # What a method has without being asked.


@dataclass(frozen=True)
class LearningTrial:
    """A task that a method learns with a seed.

    Attributes:
        method: its name.
        task: its name.
        data: set or folder of its images.
        seed: of everything random.
        granularity: what shares a mask value; None is the method's own, or that it has none.
        scale_bits: bits of a soft value at rest, likewise.
    """

    method: str
    task: str
    data: str
    seed: int
    granularity: Granularity | None = None
    scale_bits: ScaleBits | None = None

    @property
    def variant(self) -> str:
        """As `variant_of`."""
        return variant_of(self.method, self.granularity, self.scale_bits)

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.variant}-{self.task}-{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Those of `ksm-hw train` that only this trial has, but the bundle."""
        given = {
            "--method": self.method,
            "--task": self.task,
            "--data": self.data,
            "--seed": self.seed,
            "--granularity": self.granularity,
            "--scale-bits": self.scale_bits,
        }
        return [text for name, value in given.items() if value is not None for text in (name, str(value))]

    def failure(self, why: str) -> UserError:
        """That it failed, and the others did not."""
        return UserError(
            f"Task '{self.task}' was not learned by {self.variant} with seed {self.seed}; {why}. The others stay: the "
            "same command goes on."
        )


def variant_of(method: str, granularity: Granularity | None, scale_bits: ScaleBits | None) -> str:
    """The method, and in what it differs from others of the comparison, in a way that no name of a task can be."""
    return "+".join(str(each) for each in (method, granularity, scale_bits) if each is not None)


def all_trials(
    methods: Sequence[str],
    tasks: Sequence[tuple[str, str]],
    seeds: int,
    granularities: Sequence[Granularity] = (),
    scale_bits: Sequence[ScaleBits] = (),
) -> list[LearningTrial]:
    """Each method on each task, and in each granularity and number of bits that are asked for and that it can have.

    Args:
        methods: names.
        tasks: name and data of each.
        seeds: how many, from 0 on.
        granularities, scale_bits: of which each method that has the choice takes those it can, or its own.

    Raises:
        UserError: none of the methods has one of them.
    """
    variants: list[tuple[str, Granularity | None, ScaleBits | None]] = []
    for name in methods:
        method = method_named(name)
        own = [each for each in granularities if "granularity" in method.reads and each in method.granularities]
        bits = scale_bits if "scale_bits" in method.reads else ()
        variants += itertools.product([name], own or _OWN, bits or _OWN)
    for number, asked in ((1, granularities), (2, scale_bits)):
        if unused := [str(each) for each in asked if each not in {variant[number] for variant in variants}]:
            what = "masks by" if number == 1 else "soft values in bits:"
            raise UserError(f"None of the methods {', '.join(methods)} has {what} {', '.join(unused)}. Leave it out.")
    # Whole methods one after another: with one seed there is something to see.
    return [
        LearningTrial(method, task, data, seed, granularity, bits)
        for seed in range(seeds)
        for method, granularity, bits in variants
        for task, data in tasks
    ]


@dataclass(frozen=True)
class Learned:
    """What a trial gave.

    Attributes:
        method, task, seed: of the trial.
        arguments: of `ksm-hw train`, but those of the trial.
        machine: the GPU that it was learned on, or the CPU's architecture.
        accuracy: on the test images when it was learned, in 0…1.
        cpu_seconds: of the process, from its start to its end.
        seconds: of its epochs.
        memory_bytes: the most that the process held.
        gpu_bytes: the most that PyTorch held on the GPU; 0 without one.
        pack_bytes: of the task's tensors at rest.
    """

    method: str
    task: str
    seed: int
    arguments: tuple[str, ...]
    machine: str
    accuracy: float
    cpu_seconds: float
    seconds: float
    memory_bytes: int
    gpu_bytes: int
    pack_bytes: int


OnTrial = Callable[[LearningTrial, Learned], None]
Arguments = Callable[[str], Sequence[str]]  # Of `ksm-hw train` for a method, but those of the trial.


def bundle_of(folder: Path, trial: LearningTrial) -> Path:
    """The bundle that a trial learns into: one a variant and seed, and a task where the method changes all weights."""
    own = f"-{trial.task}" if method_named(trial.method).alone else ""
    return folder / "bundles" / f"{trial.variant}-{trial.seed}{own}"


def curve_of(folder: Path, trial: LearningTrial) -> Path:
    """The file with the epochs of a trial (`learning.curves`)."""
    return folder / "curves" / f"{trial.variant}-{trial.seed}" / f"{trial.task}.csv"


def in_order(trials: Sequence[LearningTrial]) -> list[list[LearningTrial]]:
    """The trials in parts that may run beside each other; those of a part follow each other.

    A task that changes the backbone is learned over what the one before it left. The longest parts come first.
    """
    parts: dict[object, list[LearningTrial]] = {}
    for trial in trials:
        method = method_named(trial.method)
        follows = method.changes_weights and not method.alone
        parts.setdefault((trial.variant, trial.seed) if follows else trial, []).append(trial)
    return sorted(parts.values(), key=len, reverse=True)


def learn_trials(
    trials: Sequence[LearningTrial],
    folder: Path,
    arguments: Arguments,
    jobs: int = 1,
    on_trial: OnTrial = lambda *_: None,
    runner: Runner | None = None,
) -> dict[LearningTrial, Learned]:
    """Runs what is missing of a comparison, as `run_trials`.

    Args:
        trials: all of them; those of a variant and seed in the order in which they are learned.
        folder: of the comparison.
        arguments: of `ksm-hw train` for a method, but those of the trial.
        jobs, on_trial, runner: see there.

    Raises:
        UserError: see there.
    """

    def command(trial: LearningTrial) -> list[str]:
        curves = ("--log", "csv", "--log-folder", str(curve_of(folder, trial).parent))
        where = ("--bundle", str(bundle_of(folder, trial)), *curves, "--json")
        return ["train", *trial.arguments, *where, *arguments(trial.method)]

    kind = Kind(command, lambda trial: arguments(trial.method), _learned, Learned)
    found = run_trials(in_order(trials), kind, folder, jobs, on_trial, runner)
    return {trial: found[trial] for trial in trials}


def _learned(trial: LearningTrial, arguments: tuple[str, ...], ran: Ran) -> Learned:
    said = ran.said
    return Learned(
        trial.method, trial.task, trial.seed, arguments, said["machine"], said["accuracy"], ran.cpu_seconds,
        said["seconds"], ran.memory_bytes, said["gpu_bytes"], said["pack_bytes"],
    )  # fmt: skip
