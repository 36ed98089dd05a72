"""Building and measuring schedules that a tuner tries: on boards, or on this machine.

Both happen in processes that stay alive from one schedule to the next, because they import TVM for seconds and build a
schedule in a fraction of one. A schedule that crashes its process, or takes too long, costs that process only.
"""

import concurrent.futures
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import CONSTS, ProcessExpired, ProcessPool
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.reaching import WAIT, known_boards
from ksm_hw.compiler.tuning.candidate_process import prepare_process
from ksm_hw.compiler.tuning.candidate_worker import (
    SECONDS,
    CandidateLibrary,
    build_candidate,
    measure_candidate,
)
from ksm_hw.errors import UserError
from ksm_hw.toolchains.linker import architecture_of, linker_command
from ksm_hw.toolchains.targets import CompileTarget

BUILDERS = 2


@dataclass(frozen=True)
class Measurement:
    """What came of one schedule: the seconds of its runs, or why there are none."""

    seconds: tuple[float, ...] = ()
    error: str = ""


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
                build_candidate,
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
            libraries.append(CandidateLibrary(str(path), self._target.device, tensors, limit))
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

    def _submit(self, library: CandidateLibrary) -> "Future[list[float]]":
        threads = self._target.cpu.get("num-cores", 1)
        return self._measurers.schedule(measure_candidate, (library, self._board, threads), timeout=SECONDS)

    def _measured(self, library: CandidateLibrary, future: "Future[list[float]]") -> Measurement:
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
