"""Building and measuring schedules that a tuner tries: on boards, or on this machine.

Both happen in processes that stay alive from one schedule to the next, because they import TVM for seconds and build a
schedule in a fraction of one. A schedule that crashes its process, or takes too long, costs that process only.
"""

import concurrent.futures
import gc
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from pebble import CONSTS, ProcessExpired, ProcessPool
from tvm import rpc
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.reaching import WAIT, known_boards
from ksm_hw.compiler.build import Built, build_executable, export_library
from ksm_hw.compiler.tuning.candidate_process import prepare_process
from ksm_hw.errors import UserError
from ksm_hw.runtime.machine import available_cores
from ksm_hw.runtime.operator_timing import before_each_run, steady_seconds
from ksm_hw.runtime.session import prepare_device
from ksm_hw.runtime.threads import use_threads
from ksm_hw.toolchains.linker import architecture_of, linker_command
from ksm_hw.toolchains.targets import CompileTarget

SECONDS = 60.0  # That one schedule may take to build, and to measure.
BUILDERS = 2


@dataclass(frozen=True)
class Measurement:
    """What came of one schedule: the seconds of its runs, or why there are none."""

    seconds: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class _Library:
    """A library with a function `main` to measure.

    Attributes:
        path: of the file.
        device: as TVM names it.
        tensors: dtype and shape of the function's arguments, which are filled with random numbers: the input, weights,
            and others.
        limit: seconds; if it takes longer in a first short measurement, that is all.
    """

    path: str
    device: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    limit: float


class CandidateMeasurer:
    """Builds and measures schedules. A context: its processes end with it."""

    def __init__(self, target: CompileTarget, board: BoardAddress | None, wait: float = WAIT) -> None:
        """Takes as many boards as the tracker knows of the address's key now; this machine without an address.

        Args:
            target: what to build for.
            board: where to measure; this machine without.
            wait: seconds that boards which are all gone may take to come back.

        Raises:
            UserError: there is no linker for the target, or the tracker does not answer, or knows no such board.
        """
        linker_command(architecture_of(target.cpu))
        self._target, self._board, self._wait = target, board, wait
        self.boards = self._wait_for_boards(0)
        self._folder = tempfile.TemporaryDirectory(prefix="ksm-hw-tune-")
        self._numbers = itertools.count()
        self._builders = _pool(BUILDERS)
        self._measurers = _pool(self.boards)

    def __enter__(self) -> "CandidateMeasurer":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._builders, self._measurers):
            pool.stop()
            pool.join()
        self._folder.cleanup()

    def measure(
        self,
        schedules: Sequence[Schedule],
        arguments: Sequence[Sequence[ArgInfo]],
        limits: Sequence[float],
        turns: int = 1,
    ) -> Iterator[Measurement]:
        """Measures schedules; yields in their order, turn by turn, each as soon as it is there.

        Args:
            schedules: of functions `main`.
            arguments: what each of them takes.
            limits: seconds of each: one that takes longer in a first short measurement gets no other.
            turns: how often each is measured, built but once.

        Raises:
            UserError: all boards are gone.
        """
        paths = [Path(self._folder.name) / f"candidate{next(self._numbers)}.so" for _ in schedules]
        target = self._target
        builds = [
            self._builders.schedule(
                _build,
                (schedule.mod, dict(target.tvm), target.architectures, architecture_of(target.cpu), str(path)),
                timeout=SECONDS,
            )
            for schedule, path in zip(schedules, paths, strict=True)
        ]
        errors: Iterator[str] = (_outcome(build)[1] for build in builds)
        if self._board is None:
            errors = iter(list(errors))  # A build beside it would disturb a measurement on this machine.
        libraries, failures = [], []
        futures: list[Future[list[float]] | None] = []
        for error, path, infos, limit in zip(errors, paths, arguments, limits, strict=True):
            tensors = tuple((str(info.dtype), tuple(map(int, info.shape))) for info in infos)
            libraries.append(_Library(str(path), self._target.device, tensors, limit))
            failures.append(error)
            futures.append(None if error else self._submit(libraries[-1]))
        for _ in range(turns - 1):
            futures += [
                None if error else self._submit(library) for error, library in zip(failures, libraries, strict=True)
            ]
        for place, future in enumerate(futures):
            number = place % len(libraries)
            if future is None:
                yield Measurement(error=failures[number])
            else:
                yield self._measured(libraries[number], future)
        for path in paths:
            path.unlink(missing_ok=True)

    def _submit(self, library: _Library) -> "Future[list[float]]":
        threads = self._target.cpu.get("num-cores", 1)
        return self._measurers.schedule(_measure, (library, self._board, threads), timeout=SECONDS)

    def _measured(self, library: _Library, future: "Future[list[float]]") -> Measurement:
        seconds, error = _outcome(future)
        if error:
            # The board may have gone, which is not the schedule's fault.
            self._wait_for_boards(self._wait)
            seconds, error = _outcome(self._submit(library))
        if error:
            self._wait_for_boards(self._wait)
            return Measurement(error=error)
        return Measurement(tuple(seconds))

    def _wait_for_boards(self, seconds: float) -> int:
        """How many boards there are."""
        if self._board is None or self._board.tracker is None:
            return 1
        end = time.monotonic() + seconds
        while True:
            known = known_boards(self._board.tracker)
            if count := sum(board.key == self._board.key for board in known):
                return count
            if time.monotonic() >= end:
                keys = sorted({board.key for board in known})
                raise UserError(
                    f"No board {self._board} is there. The tracker knows: {', '.join(keys) or 'none'}. Start it with "
                    "`ksm-hw board serve`; the same command then goes on from what was measured."
                )
            time.sleep(0.5)


def _pool(workers: int) -> ProcessPool:
    # Pebble looks for finished work this often, and by itself a tenth of a second is as long as a measurement.
    CONSTS.sleep_unit = 0.01
    # TVM's code generation keeps some memory of every schedule. Not forked: TVM has threads.
    pool = ProcessPool(
        workers, max_tasks=500, initializer=prepare_process, context=multiprocessing.get_context("spawn")
    )
    pool.schedule(time.monotonic)  # So that its processes start now, and import TVM while the network is lowered.
    return pool


def _outcome(future: "Future[Any]") -> tuple[Any, str]:
    """What a process returned, or why it did not."""
    try:
        return future.result(), ""
    except concurrent.futures.TimeoutError:
        return None, f"it took longer than {SECONDS:.0f} s"
    except ProcessExpired:
        return None, "its process crashed"
    except Exception as error:
        return None, (str(error).strip().splitlines() or [repr(error)])[-1]


def _build(
    module: tvm.IRModule, target: Mapping[str, Any], architectures: Sequence[str], architecture: str, path: str
) -> None:
    """Runs in a builder."""
    tvm_target = tvm.target.Target(dict(target))
    with tvm_target:
        executable = build_executable(module, tvm_target, architectures)
    # Linked here, not on the board, which has no linker.
    export_library(Built(executable), Path(path), architecture)


def _measure(library: _Library, board: BoardAddress | None, threads: int) -> list[float]:
    """Measures a library on a board, or in this process with so many threads: `steady_seconds`."""
    if board is None:
        prepare_device(library.device)
        use_threads(min(threads, available_cores()))
        session = rpc.LocalSession()
    elif board.tracker is not None:
        session = rpc.connect_tracker(*board.tracker).request(board.key, session_timeout=SECONDS)
    else:
        assert board.host is not None
        session = rpc.connect(*board.host, board.key, session_timeout=SECONDS)
    try:
        return _timed(session, library)
    finally:
        if board is not None:
            # It is free again when nothing refers to the session. That takes a tenth of a second.
            del session
            gc.collect()


def _timed(session: Any, library: _Library) -> list[float]:
    name = Path(library.path).name
    session.upload(library.path, name)
    module = session.load_module(name)
    device = session.device(library.device, 0)
    fill = session.get_function("tvm.contrib.random.random_fill_for_measure")
    arguments = []
    for dtype, shape in library.tensors:
        arguments.append(tvm.runtime.empty(shape, dtype, device))
        fill(arguments[-1])

    before = before_each_run(library.tensors) if library.device == "cpu" else ""

    def seconds_of_runs(runs: int) -> Sequence[float]:
        evaluator = module.time_evaluator("main", device, number=1, repeat=runs, f_preproc=before)
        results: Sequence[float] = evaluator(*arguments).results
        return results

    measured = steady_seconds(seconds_of_runs, library.limit)
    session.remove(name)
    return [measured]
