"""What a process does that builds schedules, or measures them: one schedule a call."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc
from tvm.ir.transform import Sequential

from ksm_hw.boards.address import BoardAddress
from ksm_hw.compiler.build import Built, build_executable, export_library
from ksm_hw.runtime.machine import available_cores
from ksm_hw.runtime.operator_timing import before_each_run, steady_seconds
from ksm_hw.runtime.session import prepare_device
from ksm_hw.runtime.threads import use_threads
from tvm_passes.relax.write_integer_kernels import WriteIntegerKernels

SECONDS = 60.0  # That one schedule may take to build, and to measure.


@dataclass(frozen=True)
class CandidateLibrary:
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


def build_candidate(
    module: tvm.IRModule, target: Mapping[str, Any], architectures: Sequence[str], architecture: str, path: str
) -> None:
    """Builds a schedule into a library that `measure_candidate` can load where it measures.

    Args:
        module: with the scheduled function `main`.
        target: the dictionary of TVM's target.
        architectures: of a CUDA target, as `build_executable` takes them.
        architecture: of the CPU.
        path: of the library.
    """
    tvm_target = tvm.target.Target(dict(target))
    with tvm_target:
        module = Sequential([WriteIntegerKernels()])(module)
        executable = build_executable(module, tvm_target, architectures)
    # Linked here, not on the board, which has no linker.
    export_library(Built(executable, for_cpu="cpu" in tvm_target.keys), Path(path), architecture)


def measure_candidate(library: CandidateLibrary, board: BoardAddress | None, threads: int) -> list[float]:
    """Measures a library on a board, or in this process: `steady_seconds`.

    Args:
        library: what to measure.
        board: where; in this process without.
        threads: of the CPU, in this process.
    """
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


def _timed(session: Any, library: CandidateLibrary) -> list[float]:
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
