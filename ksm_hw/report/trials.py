"""Trials of a comparison or a sweep: each a `ksm-hw` command in a process of its own, several beside each other.

What a trial gave is kept in a file of its own, so that what was stopped goes on, and a process that dies costs its
trial alone.
"""

import contextlib
import dataclasses
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
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ksm_hw.errors import UserError
from ksm_hw.files.written import explained, written_file

_WHILE = 5.0  # Seconds.


class Trial(Protocol):
    """What is run."""

    @property
    def name(self) -> str:
        """What its files are called."""

    def failure(self, why: str) -> UserError:
        """That it failed."""


class Outcome(Protocol):
    """What a trial gave: a dataclass that `keep` can write."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the command, which must be the same where a trial is not run again."""


AnyTrial = TypeVar("AnyTrial", bound=Trial)
AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Ran:
    """What a command said, and what its process took: CPU seconds, and the most bytes of memory that it held."""

    said: dict[str, Any]
    cpu_seconds: float
    memory_bytes: int


class Runner(Protocol):
    """Where trials run: in processes here (`Processes`), or on a cluster (`cluster.Cluster`)."""

    def run(self, command: Sequence[str], log: Path, trial: Trial) -> Ran:
        """Runs a command of `ksm-hw`, whose errors go into `log`; raises UserError where it fails."""

    def stop(self) -> None:
        """Ends what runs, as Ctrl-C does."""


@dataclass(frozen=True)
class Kind(Generic[AnyTrial, AnyOutcome]):
    """What trials of a kind are.

    Attributes:
        command: of `ksm-hw` for a trial, as a whole, with --json.
        arguments: of them those that are noted, and must be the same where a trial was run before.
        outcome: what becomes of what the command said; takes the trial and these arguments too.
        kept: its type.
    """

    command: Callable[[AnyTrial], Sequence[str]]
    arguments: Callable[[AnyTrial], Sequence[str]]
    outcome: Callable[[AnyTrial, tuple[str, ...], Ran], AnyOutcome]
    kept: type[AnyOutcome]


def run_trials(
    parts: Sequence[Sequence[AnyTrial]],
    kind: Kind[AnyTrial, AnyOutcome],
    folder: Path,
    jobs: int = 1,
    on_trial: Callable[[AnyTrial, AnyOutcome], None] = lambda *_: None,
    runner: Runner | None = None,
) -> dict[AnyTrial, AnyOutcome]:
    """Runs what is missing. A trial that fails costs itself, and those that were to follow it.

    Args:
        parts: of trials, which may run beside each other; those of a part follow each other.
        kind: what they are.
        folder: of the comparison or sweep.
        jobs: trials beside each other. With more than one what they say is written into files.
        on_trial: called after each.
        runner: where they run; without one in processes here.

    Raises:
        UserError: trials failed, which are named when the others are done; the folder was begun with other arguments.
    """
    if runner is None:
        runner = Processes(None if jobs == 1 else max((os.cpu_count() or 1) // jobs, 1))
    runs = _Runs(kind, folder, runner, on_trial)
    failures: list[UserError] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(runs.run, part) for part in parts]
        try:
            for future in as_completed(futures):
                failures += [] if (failure := future.result()) is None else [failure]
        except BaseException:
            runs.stop()
            raise
    if failures:
        raise UserError("\n".join(map(str, failures)))
    return runs.outcomes


class _Runs(Generic[AnyTrial, AnyOutcome]):
    """Trials that run, and what stops them."""

    def __init__(
        self,
        kind: Kind[AnyTrial, AnyOutcome],
        folder: Path,
        runner: Runner,
        on_trial: Callable[[AnyTrial, AnyOutcome], None],
    ) -> None:
        self.kind, self.folder, self.runner, self.on_trial = kind, folder, runner, on_trial
        self.outcomes: dict[AnyTrial, AnyOutcome] = {}
        self._stopped = threading.Event()

    def run(self, part: Sequence[AnyTrial]) -> UserError | None:
        """Runs trials one after another, up to the first that fails, whose reason this returns."""
        for trial in part:
            if self._stopped.is_set():
                break
            try:
                self.outcomes[trial] = self._outcome(trial)
            except UserError as error:
                return error
            self.on_trial(trial, self.outcomes[trial])
        return None

    def stop(self) -> None:
        """Ends those that run, and begins no other."""
        self._stopped.set()
        self.runner.stop()

    def _outcome(self, trial: AnyTrial) -> AnyOutcome:
        arguments = tuple(self.kind.arguments(trial))
        path = self.folder / "trials" / f"{trial.name}.json"
        if path.exists():
            return _kept_outcome(path, self.kind.kept, arguments)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        ran = self.runner.run(self.kind.command(trial), path.with_suffix(".log"), trial)
        outcome = self.kind.outcome(trial, arguments, ran)
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

    def run(self, command: Sequence[str], log: Path, trial: Trial) -> Ran:
        """As `Runner`."""
        whole = [sys.executable, "-m", "ksm_hw.cli", *command]
        with contextlib.ExitStack() as stack:
            stderr, environment, where = None, None, "above"
            if self.threads is not None:
                stderr, where = stack.enter_context(log.open("wb")), f"in {log}"
                environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
            process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=stderr, env=environment)
            self._processes.add(process)
            assert process.stdout is not None
            said = process.stdout.read()
            usage = _waited(process)
            self._processes.discard(process)
        if process.returncode:
            raise trial.failure(f"the reason is {where}")
        return Ran(json.loads(said), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def stop(self) -> None:
        """Ends the processes as Ctrl-C does. That of a terminal has reached them already: they are given a while."""
        end = time.monotonic() + _WHILE
        while self._processes and time.monotonic() < end:
            time.sleep(0.05)
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)


def _waited(process: "subprocess.Popen[bytes]") -> resource.struct_rusage:
    """What a process took, which ends."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _kept_outcome(path: Path, kind: type[AnyOutcome], arguments: tuple[str, ...]) -> AnyOutcome:
    outcome = kept(path, kind)
    if outcome.arguments != arguments:
        raise UserError(
            f"{path} was made with {shlex.join(outcome.arguments)}, not {shlex.join(arguments)}. Give the same, or "
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
