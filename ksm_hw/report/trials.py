"""Trials of a comparison: each a task that a method learns, in a process of its own, several beside each other.

What a trial gave is kept in a file of its own, so that a comparison that was stopped goes on, and a process that dies
costs its trial alone.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from ksm_hw.errors import UserError
from ksm_hw.files.written import explained, written_file
from ksm_hw.learning.methods.table import method_named
from ksm_hw.masks.mask_format import Granularity, ScaleBits

_WHILE = 5.0  # Seconds.
_OWN: tuple[None] = (None,)  # What a method has without being asked.


@dataclass(frozen=True)
class Trial:
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


def variant_of(method: str, granularity: Granularity | None, scale_bits: ScaleBits | None) -> str:
    """The method, and in what it differs from others of the comparison, in a way that no name of a task can be."""
    return "+".join(str(each) for each in (method, granularity, scale_bits) if each is not None)


def all_trials(
    methods: Sequence[str],
    tasks: Sequence[tuple[str, str]],
    seeds: int,
    granularities: Sequence[Granularity] = (),
    scale_bits: Sequence[ScaleBits] = (),
) -> list[Trial]:
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
        Trial(method, task, data, seed, granularity, bits)
        for seed in range(seeds)
        for method, granularity, bits in variants
        for task, data in tasks
    ]


@dataclass(frozen=True)
class Outcome:
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


Kept = TypeVar("Kept")
OnTrial = Callable[[Trial, Outcome], None]
Arguments = Callable[[str], Sequence[str]]  # Of `ksm-hw train` for a method, but those of the trial.


def bundle_of(folder: Path, trial: Trial) -> Path:
    """The bundle that a trial learns into: one a variant and seed, and a task where the method changes all weights."""
    own = f"-{trial.task}" if method_named(trial.method).alone else ""
    return folder / "bundles" / f"{trial.variant}-{trial.seed}{own}"


def in_order(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials in parts that may run beside each other; those of a part follow each other.

    A task that changes the backbone is learned over what the one before it left. The longest parts come first.
    """
    parts: dict[object, list[Trial]] = {}
    for trial in trials:
        method = method_named(trial.method)
        follows = method.changes_weights and not method.alone
        parts.setdefault((trial.variant, trial.seed) if follows else trial, []).append(trial)
    return sorted(parts.values(), key=len, reverse=True)


@dataclass(frozen=True)
class Learned:
    """What `ksm-hw train` said, and what its process took: CPU seconds, and the most bytes of memory that it held."""

    said: dict[str, Any]
    cpu_seconds: float
    memory_bytes: int


class Learner(Protocol):
    """Where trials run: in processes here (`Processes`), or on a cluster (`cluster.Cluster`)."""

    def learn(self, arguments: Sequence[str], log: Path, trial: Trial) -> Learned:
        """Runs `ksm-hw train`, whose errors go into `log`; raises UserError where it fails."""

    def stop(self) -> None:
        """Ends what runs, as Ctrl-C does."""


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    arguments: Arguments,
    jobs: int = 1,
    on_trial: OnTrial = lambda *_: None,
    learner: Learner | None = None,
) -> dict[Trial, Outcome]:
    """Runs what is missing of a comparison. A trial that fails costs itself, and those that were to follow it.

    Args:
        trials: all of them; those of a method and seed in the order in which they are learned.
        folder: of the comparison.
        arguments: of `ksm-hw train` for a method, but those of the trial.
        jobs: trials beside each other. With more than one what they say is written into files.
        on_trial: called after each.
        learner: where they run; without one in processes here.

    Raises:
        UserError: trials failed, which are named when the others are done; the folder was begun with other arguments.
    """
    if learner is None:
        learner = Processes(None if jobs == 1 else max((os.cpu_count() or 1) // jobs, 1))
    runs = _Runs(folder, arguments, learner)
    outcomes: dict[Trial, Outcome] = {}
    failures: list[UserError] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(runs.run, part, outcomes, on_trial) for part in in_order(trials)]
        try:
            for future in as_completed(futures):
                failures += [] if (failure := future.result()) is None else [failure]
        except BaseException:
            runs.stop()
            raise
    if failures:
        raise UserError("\n".join(map(str, failures)))
    return {trial: outcomes[trial] for trial in trials}


class _Runs:
    """Trials that run, and what stops them."""

    def __init__(self, folder: Path, arguments: Arguments, learner: Learner) -> None:
        self.folder, self.arguments, self.learner = folder, arguments, learner
        self._stopped = threading.Event()

    def run(self, part: Sequence[Trial], outcomes: dict[Trial, Outcome], on_trial: OnTrial) -> UserError | None:
        """Runs trials one after another, up to the first that fails, whose reason this returns."""
        for trial in part:
            if self._stopped.is_set():
                break
            try:
                outcomes[trial] = self._outcome(trial)
            except UserError as error:
                return error
            on_trial(trial, outcomes[trial])
        return None

    def stop(self) -> None:
        """Ends those that run, and begins no other."""
        self._stopped.set()
        self.learner.stop()

    def _outcome(self, trial: Trial) -> Outcome:
        arguments = self.arguments(trial.method)
        path = self.folder / "trials" / f"{trial.name}.json"
        if path.exists():
            return _kept_outcome(path, arguments)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        where = ("--bundle", str(bundle_of(self.folder, trial)), "--json")
        learned = self.learner.learn([*trial.arguments, *where, *arguments], path.with_suffix(".log"), trial)
        found = learned.said
        outcome = Outcome(
            trial.method, trial.task, trial.seed, tuple(arguments), found["machine"], found["accuracy"],
            learned.cpu_seconds, found["seconds"], learned.memory_bytes, found["gpu_bytes"], found["pack_bytes"],
        )  # fmt: skip
        keep(outcome, path)
        return outcome


class Processes:
    """Trials in processes on this machine.

    Args:
        threads: of each; None where one runs alone, which then says what it says on the terminal.
    """

    def __init__(self, threads: int | None) -> None:
        self.threads = threads
        self._processes: set[subprocess.Popen[bytes]] = set()

    def learn(self, arguments: Sequence[str], log: Path, trial: Trial) -> Learned:
        """As `Learner`."""
        command = [sys.executable, "-m", "ksm_hw.cli", "train", *arguments]
        with contextlib.ExitStack() as stack:
            stderr, environment, where = None, None, "above"
            if self.threads is not None:
                stderr, where = stack.enter_context(log.open("wb")), f"in {log}"
                environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
            self._processes.add(process)
            assert process.stdout is not None
            said = process.stdout.read()
            usage = _waited(process)
            self._processes.discard(process)
        if process.returncode:
            raise not_learned(trial, f"the reason is {where}")
        return Learned(json.loads(said), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def stop(self) -> None:
        """Ends the processes as Ctrl-C does. That of a terminal has reached them already: they are given a while."""
        end = time.monotonic() + _WHILE
        while self._processes and time.monotonic() < end:
            time.sleep(0.05)
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)


def not_learned(trial: Trial, why: str) -> UserError:
    """That a trial failed, and the others did not."""
    return UserError(
        f"Task '{trial.task}' was not learned by {trial.variant} with seed {trial.seed}; {why}. The others stay: the "
        "same command goes on."
    )


def _waited(process: "subprocess.Popen[bytes]") -> resource.struct_rusage:
    """What a process took, which ends."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _kept_outcome(path: Path, arguments: Sequence[str]) -> Outcome:
    outcome = kept(path, Outcome)
    if outcome.arguments != tuple(arguments):
        raise UserError(
            f"{path} was learned with {shlex.join(outcome.arguments)}, not {shlex.join(arguments)}. Give the same, or "
            "another -o FOLDER."
        )
    return outcome


def kept(path: Path, kind: type[Kept]) -> Kept:
    """What `keep` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it to have it made again.") from error


def keep(content: Any, path: Path) -> None:
    """Writes a dataclass as JSON, whole or not at all; its folder is made.

    Raises:
        UserError: the file cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_file(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(content), indent=2) + "\n")
