"""From a bundle to an artifact, through Relax or Relay."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ksm_hw.artifact.manifest import Manifest
from ksm_hw.artifact.modes import FoldMode, IntermediateRepresentation, Precision
from ksm_hw.artifact.output import check_apart, check_output, write_artifact
from ksm_hw.compiler.compiled import Compiled
from ksm_hw.compiler.dump_folder import check_dump_folder
from ksm_hw.compiler.tuning.records_folder import records_sha256, whole_records
from ksm_hw.errors import UserError
from ksm_hw.files.locks import locked_folder
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import Bundle, rounded_bundle
from ksm_hw.toolchains.linker import architecture_of
from ksm_hw.toolchains.targets import CompileTarget, on_fast_cores, required_cpu_features

if TYPE_CHECKING:
    from ksm_hw.compiler.zero_channels import Narrowed


def compile_bundle(
    bundle: Bundle,
    target: CompileTarget,
    output: Path,
    *,
    fold: FoldMode = "switch",
    precision: Precision = "float32",
    backbone_precision: BackbonePrecision = "float32",
    batch: int = 1,
    runner: bool = False,
    tuned: Path | None = None,
    ir: IntermediateRepresentation = "relax",
    dump: Path | None = None,
    assembly: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Path]:
    """Compiles the tasks of a bundle and writes the artifact; with `bake` one artifact a task, in folders inside.

    Args:
        bundle: backbone and tasks.
        target: what to compile for.
        output: folder to write.
        fold: where the masks go (DESIGN: `switch`, `bake`, `fused`).
        precision: what an inference computes in.
        backbone_precision: what the backbone's weights are rounded to at rest.
        batch: images an inference.
        runner: whether the program that runs the artifact without Python is put into it.
        tuned: folder of `ksm-hw tune`, whose schedules are taken for the operators that it has.
        ir: the compiler to go through; `relay` is that of TVM 0.19, which `ksm-hw relay install` brings.
        dump: folder for the module behind each phase of the compiler.
        assembly: whether the assembler of each kernel is written there too.
        on_step: called with the name of each step as it begins, and with how many operators got a tuned schedule.

    Returns:
        The folders of the artifacts, whose backbones lack the channels that are 0 in all tasks (`zero_channels`).

    Raises:
        UserError: no tasks, tasks that need different inputs, a missing linker or compiler for CUDA, a compute
            capability that it does not know, what the runner needs is missing, a folder that cannot be written, that
            holds something else than an older artifact, or that is the bundle's, lies in it or holds it, a folder of
            `tuned` that is of another target or version of TVM, or has no record of any operator, a folder of `dump`
            that holds something else or lies in `output`, `assembly` without one, a network with tensors of a type that
            a pass does not know, something that Relay cannot do, or it is not installed, a backbone that cannot be
            rounded so, or is already, otherwise, or one that `bake` is to round.
    """
    check_backbone_precision(backbone_precision, fold)
    inputs = [folder for folder in (bundle.folder, tuned) if folder is not None]
    folders = check_places(output, list(bundle.packs), fold, inputs, dump, assembly)
    with contextlib.ExitStack() as stack:
        if dump is not None:
            stack.enter_context(locked_folder(dump))
        if tuned is not None:
            tuned = stack.enter_context(whole_records(tuned))
        from ksm_hw.compiler.zero_channels import without_zero_channels

        narrowed = without_zero_channels(bundle)
        narrowed = dataclasses.replace(narrowed, bundle=rounded_bundle(narrowed.bundle, backbone_precision))
        return _compile(narrowed, target, folders, fold, precision, batch, runner, tuned, ir, dump, assembly, on_step)


def check_backbone_precision(backbone_precision: BackbonePrecision, fold: FoldMode) -> None:
    """Checks that a device reads the backbone that is rounded.

    Raises:
        UserError: its library holds the weights of every task, and it reads no other.
    """
    if fold == "bake" and backbone_precision != "float32":
        raise UserError(
            "With --fold bake the library holds each task's weights as inferences read them; a backbone in "
            f"{backbone_precision} beside it saves a device nothing and costs accuracy. Use --fold switch or fused, or "
            "leave --backbone-precision out."
        )


def check_places(
    output: Path,
    tasks: Sequence[str],
    fold: FoldMode,
    inputs: Sequence[Path] = (),
    dump: Path | None = None,
    assembly: bool = False,
) -> list[Path]:
    """Checks before the work that all that `compile_bundle` will write can be written; needs no TVM.

    Args:
        tasks: those that are compiled.
        inputs: folders that are read.
        output, fold, dump, assembly: as `compile_bundle`.

    Returns:
        The folders of the artifacts.

    Raises:
        UserError: as `compile_bundle`, as far as folders are concerned.
    """
    if assembly and dump is None:
        raise UserError("The assembler is written beside the modules of each phase. Say where: --dump FOLDER.")
    if dump is not None:
        check_apart(output, dump)
        check_dump_folder(dump)
    folders = [output / task for task in tasks] if fold == "bake" and len(tasks) > 1 else [output]
    for folder in folders:
        check_output(folder, inputs)
    return folders


def _compile(
    narrowed: "Narrowed",
    target: CompileTarget,
    folders: list[Path],
    fold: FoldMode,
    precision: Precision,
    batch: int,
    runner: bool,
    tuned: Path | None,
    ir: IntermediateRepresentation,
    dump: Path | None,
    assembly: bool,
    on_step: Callable[[str], None],
) -> list[Path]:
    from ksm_hw.runner.build import check_runner

    bundle = narrowed.bundle
    if runner:
        check_runner(target.device, architecture_of(target.cpu))
    tuning_sha256 = None if tuned is None else records_sha256(tuned)
    if ir == "relay":
        if precision != "float32":
            raise UserError(f"Relay compiles in float32, and {precision} was asked for. Use --ir relax.")
        from ksm_hw.compiler.relay.compile import compile_through_relay

        target = on_fast_cores(target)
        parts = compile_through_relay(bundle, target, fold, batch, runner, tuned, dump, on_step)
    else:
        from ksm_hw.compiler.relax import compile_through_relax

        parts = compile_through_relax(bundle, target, fold, precision, batch, tuned, dump, assembly, on_step)
    for folder, compiled in zip(folders, parts, strict=True):
        manifest = _manifest(compiled, narrowed, target, fold, ir, tuning_sha256)
        on_step("write")
        write_artifact(folder, manifest, _exporter(compiled, manifest, runner), compiled.bundle)
    return folders


def _manifest(
    compiled: Compiled,
    narrowed: "Narrowed",
    target: CompileTarget,
    fold: FoldMode,
    ir: IntermediateRepresentation,
    tuning_sha256: str | None,
) -> Manifest:
    """What was asked for, and what the compiler made of it."""
    return Manifest(
        backbone=narrowed.bundle.backbone,
        backbone_sha256=narrowed.bundle.backbone_sha256,
        target=target.name,
        tvm_target=target.tvm,
        device=target.device,
        cpu_features=tuple(required_cpu_features(target)),
        cores=target.cores,
        fold=fold,
        precision=compiled.precision,
        ir=ir,
        tvm_version=compiled.tvm_version,
        input_shape=compiled.input_shape,
        output_shape=compiled.output_shape,
        workspace_bytes=compiled.workspace_bytes,
        tuning_sha256=tuning_sha256,
        operators=compiled.operators,
        tasks=compiled.tasks,
        backbone_precision=narrowed.bundle.backbone_precision,
        channels_left_out=narrowed.channels,
    )


def _exporter(compiled: Compiled, manifest: Manifest, runner: bool) -> Callable[[Path], None]:
    """Writes the libraries into the folder of an artifact, and with `runner` the program that runs them."""

    def export(folder: Path) -> None:
        compiled.export(folder)
        if runner:
            from ksm_hw.runner.build import add_runner

            add_runner(folder, manifest, compiled.bundle)

    return export
