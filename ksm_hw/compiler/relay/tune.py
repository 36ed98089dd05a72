"""Tuning through Relay, as the main environment sees it: the search is asked for there, the measuring is done here."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.board import connected_board
from ksm_hw.compiler.relay.process import compiler_process
from ksm_hw.compiler.tuning.progress import TuneProgress, TuneResult, TunerName
from ksm_hw.compiler.tuning.records_folder import Origin, prepare_folder, tuned_folder, write_header
from ksm_hw.compiler.zero_channels import without_zero_channels
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.measuring.relay_library import LibraryTimer
from ksm_hw.runtime.relay.environment import TVM_VERSION, check_installed
from ksm_hw.toolchains.linker import architecture_of, linker_command
from ksm_hw.toolchains.targets import CompileTarget, on_fast_cores


def check_target(target: CompileTarget) -> None:
    """Raises a UserError if operators are not tuned for a target through Relay: it is no CPU."""
    if target.device != "cpu":
        raise UserError(f"--ir relay tunes for CPUs, and '{target.name}' is for {target.device}. Use --ir relax.")


def tune_through_relay(
    bundle: Bundle,
    target: CompileTarget,
    output: Path,
    *,
    tuner: TunerName,
    trials: int,
    board: BoardAddress | None = None,
    batch: int = 1,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
) -> TuneResult:
    """As `ksm_hw.compiler.tuning.tune.tune`, of the operators that TVM 0.19 makes of the backbone, on one board.

    Args:
        tuner: the search: TVM's AutoTVM, or its MetaSchedule.
        bundle, target, output, trials, board, batch, on_progress: as `tune`.

    Raises:
        UserError: as `tune` and `check_target`; Relay is not installed here or on the board.
    """
    check_target(target)
    check_installed()
    target = on_fast_cores(target)
    link = linker_command(architecture_of(target.cpu))
    origin = Origin(ir="relay", tuner=tuner, tvm_version=TVM_VERSION)
    with tuned_folder(output), contextlib.ExitStack() as stack:
        time_library: Callable[..., dict[str, Any]]
        if board is None:
            time_library = stack.enter_context(LibraryTimer()).time
        else:
            time_library = stack.enter_context(connected_board(board)).time_library

        prepare_folder(output, target, origin)

        def measure(library: dict[str, Any]) -> dict[str, Any]:
            path = Path(library.pop("path"))
            return time_library(path, **library, threads=target.cpu.get("num-cores", 1), cores=list(target.cores))

        process = stack.enter_context(
            compiler_process(
                on_progress=lambda progress: on_progress(TuneProgress(**progress, boards=1, again=0)), measure=measure
            )
        )
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ksm-hw-relay-")))
        save_bundle(without_zero_channels(bundle).bundle, temporary)
        try:
            result = process.call(
                "tune", str(temporary), str(output.absolute()), tuner, dict(target.tvm), link, batch, trials
            )
        finally:
            write_header(output, target, origin)
        return TuneResult(**result, again=0)
