"""Compiling through Relay, as the main environment sees it: what it cannot do is said, the rest is asked for."""

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ksm_hw.artifact.manifest import TaskEntry
from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler.compiled import Compiled, OnStep, common_image_size, most_classes
from ksm_hw.compiler.relay.process import compiler_process
from ksm_hw.compiler.tuning.records_folder import check_header
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.runtime.relay.environment import TVM_VERSION
from ksm_hw.toolchains.linker import architecture_of, linker_command
from ksm_hw.toolchains.targets import CompileTarget


def compile_through_relay(
    bundle: Bundle,
    target: CompileTarget,
    fold: FoldMode,
    batch: int,
    runner: bool,
    tuned: Path | None,
    dump: Path | None,
    on_step: OnStep,
) -> Iterator[Compiled]:
    """Compiles the tasks of a bundle in Relay's environment: all in one, with `bake` each for itself.

    Args:
        bundle, target, fold, batch, runner, tuned, dump, on_step: as `compile_bundle`.

    Raises:
        UserError: as `compile_bundle`.
    """
    _check(target, runner, dump)
    records = None
    if tuned is not None:
        records = check_header(tuned, target, "relay", TVM_VERSION), str(tuned.absolute())
    image_size = common_image_size(bundle)
    with tempfile.TemporaryDirectory(prefix="ksm-hw-relay-") as temporary, compiler_process(on_step=on_step) as process:
        given, made = Path(temporary, "bundle"), Path(temporary, "libraries")
        given.mkdir()
        save_bundle(bundle, given)
        link = linker_command(architecture_of(target.cpu))
        parts = process.call("compile", str(given), str(made), dict(target.tvm), link, fold, batch, records)
        for part in parts:
            tasks = {
                task: TaskEntry(entry["main"], entry["rewrite"], tuple(entry["parameters"]))
                for task, entry in part["tasks"].items()
            }
            yield Compiled(
                bundle=dataclasses.replace(bundle, packs={task: bundle.packs[task] for task in tasks}),
                tasks=tasks,
                tvm_version=part["tvm_version"],
                precision=part["precision"],
                input_shape=(batch, 3, image_size, image_size),
                output_shape=(batch, most_classes(bundle)),
                workspace_bytes=part["workspace_bytes"],
                operators={},
                export=functools.partial(_copy_files, made / part["folder"]),
            )


def _check(target: CompileTarget, runner: bool, dump: Path | None) -> None:
    if target.device == "cuda":
        raise UserError("TVM 0.19, which has Relay, comes without CUDA. Compile for CUDA with --ir relax.")
    if runner:
        raise UserError("--runner is for artifacts of --ir relax: the program reads their libraries alone.")
    if dump is not None:
        raise UserError("--dump shows the phases of --ir relax. Relay's are in another process, and are not written.")


def _copy_files(source: Path, destination: Path) -> None:
    for file in source.iterdir():
        shutil.copy(file, destination)
