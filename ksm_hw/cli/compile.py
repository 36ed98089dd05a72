"""`ksm-hw compile`."""

import dataclasses
import logging
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksm_hw.artifact.modes import FoldMode, IntermediateRepresentation, Precision
from ksm_hw.cli.app import (
    Batch,
    BundlePath,
    CudaArch,
    HostTarget,
    Json,
    TargetFile,
    TargetName,
    app,
    collect_garbage_less_often,
    command,
    console,
    examples,
    messages,
    print_json,
    stopped_by_ctrl_c,
)
from ksm_hw.masks.backbone_precision import BackbonePrecision

if TYPE_CHECKING:
    from rich.status import Status

_log = logging.getLogger(__name__)


@app.command(
    name="compile",
    epilog=examples(
        "ksm-hw compile --target host --task cars --bundle my-tasks -o artifact",
        "ksm-hw compile --target rpi5 --task all --runner",
        "ksm-hw compile --target rpi5 --task all --tuned tuned/rpi5",
        "ksm-hw compile --target rpi5 --task all --precision int8 --backbone-precision int8",
        "ksm-hw compile --target cuda --arch sm_80 --task all",
        "ksm-hw compile --target host --task all --ir relay",
        "ksm-hw compile --target rpi5 --task cars --dump look --dump-assembly",
    ),
)
def compile_command(
    target: TargetName,
    task: Annotated[str, typer.Option(help="Name of a task, or all.")],
    bundle: BundlePath = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=r"Folder to write. \[default: artifacts/TARGET-TASK]")
    ] = None,
    fold: Annotated[
        FoldMode,
        typer.Option(help="switch: rewrite weights; bake: constants, one artifact a task; fused: mask at run."),
    ] = "switch",
    precision: Annotated[
        Precision, typer.Option(help="What inferences compute in. int8 takes scales from a task's ranges: calibrate.")
    ] = "float32",
    backbone_precision: Annotated[
        BackbonePrecision,
        typer.Option(help="What the backbone's weights lie in at rest, rounded; int8 by output channel. Not for bake."),
    ] = "float32",
    batch: Batch = 1,
    tuned: Annotated[Path | None, typer.Option(help="Folder of `ksm-hw tune`, whose schedules are taken.")] = None,
    runner: Annotated[
        bool, typer.Option("--runner", help="Put in a program that runs the artifact without Python.")
    ] = False,
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Put in the bundle's sample images, which verify reads.")
    ] = True,
    ir: Annotated[
        IntermediateRepresentation,
        typer.Option(help="The compiler to go through. relay is that of TVM 0.19: `ksm-hw relay install`."),
    ] = "relax",
    dump: Annotated[
        Path | None, typer.Option(help="Folder for the module behind each phase: 01-lowered.py and on, as TVMScript.")
    ] = None,
    dump_assembly: Annotated[
        bool, typer.Option("--dump-assembly", help="Beside them, in assembly/, the assembler of each kernel.")
    ] = False,
    target_file: TargetFile = None,
    host: HostTarget = None,
    arch: CudaArch = None,
    as_json: Json = False,
) -> None:
    """Compile one task, or all, into an artifact that runs on a target."""
    from ksm_hw.compiler.compile import check_backbone_precision, check_places, compile_bundle
    from ksm_hw.masks.bundle import load_bundle, select_tasks, tasks_in
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import load_target

    folder, bundle = output or Path("artifacts") / f"{target}-{task}", bundle or shipped_bundle()
    tasks = tasks_in(bundle) if task == "all" else [task]
    # Before TVM is imported, which takes seconds.
    check_backbone_precision(backbone_precision, fold)
    check_places(folder, tasks, fold, [bundle, *([tuned] if tuned else [])], dump, dump_assembly)
    compile_target = load_target(target, file=target_file, arch=arch, host=host)
    selected = select_tasks(load_bundle(bundle), task)
    if not samples:
        selected = dataclasses.replace(selected, samples=None)
    left = "What was not finished is not written."
    with stopped_by_ctrl_c(left), messages.status("import the compiler") as status:
        collect_garbage_less_often()
        artifacts = compile_bundle(
            selected,
            compile_target,
            folder,
            fold=fold,
            precision=precision,
            backbone_precision=backbone_precision,
            batch=batch,
            runner=runner,
            tuned=tuned,
            ir=ir,
            dump=dump,
            assembly=dump_assembly,
            on_step=partial(_begin, status),
        )
    sizes = {str(path): sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in artifacts}
    if as_json:
        print_json({"artifacts": [{"path": path, "bytes": size} for path, size in sizes.items()]})
    else:
        board = ["--tracker", "HOST:PORT", "--key", target] if compile_target.is_for_a_board else []
        _print_written(sizes, runner, [*([] if samples else ["--images", "FOLDER"]), *board])


def _begin(status: "Status", step: str) -> None:
    status.update(step)
    _log.info(step)


def _print_written(sizes: dict[str, int], runner: bool, options: list[str]) -> None:
    """The artifacts, the bytes of their files and how they are verified, by which options, for a person."""
    for path, size in sizes.items():
        console.print(f"Wrote {path}: {size / 1e6:.1f} MB", soft_wrap=True)
        if runner:
            from ksm_hw.runner.build import deployed_bytes

            deployed = deployed_bytes(Path(path)) / 1e6
            program = shlex.quote(f"{path}/runner/ksm-runner")
            console.print(f"Without Python, {deployed:.1f} MB of it: {program} --help", soft_wrap=True)
    console.print(f"Check it: {command('verify', *sizes, *options)}", soft_wrap=True)
