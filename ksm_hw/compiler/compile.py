"""From a bundle to an artifact: lower, fold, schedule, build, write."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tvm
from tvm.s_tir.meta_schedule.database import Database

from ksm_hw.compiler.build import build_executable, workspace_bytes
from ksm_hw.compiler.cuda import find_cuda_compiler
from ksm_hw.compiler.linker import architecture_of
from ksm_hw.compiler.lower import HEAD_WEIGHT, lower_backbone
from ksm_hw.compiler.operator_costs import operator_costs
from ksm_hw.compiler.runner import check_runner
from ksm_hw.compiler.targets import CompileTarget, required_cpu_features
from ksm_hw.compiler.tuning_records import open_records
from ksm_hw.errors import UserError
from ksm_hw.files import refuse_foreign_folder
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.soft_mask import GROUP_SIZE
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.preprocessing import Preprocessing
from ksm_hw.runtime.artifact import Manifest, OperatorCost, TaskEntry, write_artifact
from ksm_hw.runtime.task_parameters import task_parameters
from tvm_passes.relax.fold_task_mask import MaskLayout
from tvm_passes.relax.pipeline import TaskFunctions, fold_tasks, schedule_kernels
from tvm_passes.relax.schedules.tuned import TunedSchedule

FoldMode = Literal["switch", "bake", "fused"]
FOLD_MODES: tuple[FoldMode, ...] = get_args(FoldMode)


@dataclass(frozen=True)
class _Folded:
    """A bundle's module before scheduling, and which functions each task uses."""

    module: tvm.IRModule
    functions: dict[str, TaskFunctions]
    classes: int


def compile_bundle(
    bundle: Bundle,
    target: CompileTarget,
    output: Path,
    *,
    fold: FoldMode = "switch",
    batch: int = 1,
    runner: bool = False,
    tuned: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Path]:
    """Compiles the tasks of a bundle and writes the artifact; with `bake` one artifact a task, in folders inside.

    Args:
        bundle: backbone and tasks.
        target: what to compile for.
        output: folder to write.
        fold: where the masks go (DESIGN: `switch`, `bake`, `fused`).
        batch: images an inference.
        runner: whether the program that runs the artifact without Python is put into it.
        tuned: folder of `ksm-hw tune`, whose schedules are taken for the operators that it has.
        on_step: called with the name of each step as it begins, and with how many operators got a tuned schedule.

    Returns:
        The folders of the artifacts.

    Raises:
        UserError: no tasks, tasks that need different inputs, a missing linker or compiler for CUDA, a compute
            capability that it does not know, what the runner needs is missing, a folder that cannot be written, a
            folder of `tuned` that is of another target or version of TVM, or has no record of any operator.
    """
    if not bundle.packs:
        raise UserError("The bundle holds no tasks. Learn one with `ksm-hw train`.")
    if target.device == "cuda":
        # What is missing is found now, not after minutes.
        find_cuda_compiler().check(target.architectures)
    if runner:
        check_runner(target.device, architecture_of(target.cpu))
    folders = [output / task for task in bundle.packs] if fold == "bake" and len(bundle.packs) > 1 else [output]
    for folder in folders:
        refuse_foreign_folder(folder)
    records = open_records(tuned, target).database if tuned is not None else None
    image_size = _common_image_size(bundle)
    on_step("lower")
    tvm_target = tvm.target.Target(dict(target.tvm))
    folded = _fold(bundle, batch, image_size, tvm_target, fused=fold == "fused")
    parts = _baked(folded, bundle, on_step) if fold == "bake" else iter([(bundle, folded)])
    for folder, (part, module) in zip(folders, parts, strict=True):
        executable, workspace, operators = _build(module.module, target, records, on_step)
        manifest = Manifest(
            backbone=bundle.backbone,
            backbone_sha256=bundle.backbone_sha256,
            target=target.name,
            tvm_target=target.tvm,
            device=target.device,
            cpu_features=tuple(required_cpu_features(target)),
            cores=target.cores,
            fold=fold,
            precision="float32",
            tvm_version=tvm.__version__,
            input_shape=(batch, 3, image_size, image_size),
            output_shape=(batch, module.classes),
            workspace_bytes=workspace,
            operators=operators,
            tasks={
                task: TaskEntry(functions.main, functions.rewrite, functions.parameters)
                for task, functions in module.functions.items()
            },
        )
        on_step("write")
        write_artifact(folder, manifest, executable, part, runner)
    return folders


def _build(
    module: tvm.IRModule, target: CompileTarget, records: Database | None, on_step: Callable[[str], None]
) -> tuple[tvm.relax.VMExecutable, int, dict[str, OperatorCost]]:
    """Schedules and builds a module; also the bytes of its activations and what its operators cost."""
    on_step("schedule")
    tvm_target = tvm.target.Target(dict(target.tvm))
    rules = [TunedSchedule(records)] if records is not None else []
    module = schedule_kernels(module, tvm_target, rules)
    for rule in rules:
        if rule.applied == 0:
            raise UserError(
                "The tuning records hold none of any operator of this network at this batch and image size. Tune a "
                "bundle of the same backbone: ksm-hw tune."
            )
        on_step(f"{rule.applied} operators with tuned schedules")
    on_step("build")
    executable = build_executable(module, tvm_target, target.architectures)
    return executable, workspace_bytes(module), operator_costs(module)


def main_functions(bundle: Bundle, target: tvm.target.Target, batch: int = 1) -> tvm.IRModule:
    """What a bundle's artifact runs for each image, before scheduling: every `main` of `--fold switch`.

    Raises:
        UserError: as `compile_bundle`.
    """
    if not bundle.packs:
        raise UserError("The bundle holds no tasks. Learn one with `ksm-hw train`.")
    folded = _fold(bundle, batch, _common_image_size(bundle), target)
    mains = {functions.main for functions in folded.functions.values()}
    return tvm.IRModule(
        {
            variable: function
            for variable, function in folded.module.functions.items()
            if variable.name_hint in mains or isinstance(function, tvm.tirx.PrimFunc)
        }
    )


def _common_image_size(bundle: Bundle) -> int:
    sizes: dict[Preprocessing, str] = {}
    first = next(iter(bundle.packs.values()))
    for task, pack in bundle.packs.items():
        sizes.setdefault(pack.preprocessing, task)
        if pack.preprocessing.image_size != first.preprocessing.image_size:
            raise UserError(
                f"Task '{first.task}' takes images of {first.preprocessing.image_size} pixels and '{task}' of "
                f"{pack.preprocessing.image_size}, and an artifact has one input. Compile them apart with --task."
            )
    return first.preprocessing.image_size


def _check_heads(network: tvm.IRModule, bundle: Bundle) -> None:
    (features,) = (int(weight.ty.shape[1]) for weight in network["main"].params if weight.name == HEAD_WEIGHT)
    for task, pack in bundle.packs.items():
        if pack.head_weight.shape[1:] != (features,):
            raise UserError(
                f"Task '{task}' has a head of shape {list(pack.head_weight.shape)}; {bundle.backbone} needs "
                f"{[len(pack.classes), features]}. The file is damaged or belongs to another network."
            )


def _mask_layouts(pack: TaskPack) -> dict[str, MaskLayout]:
    group_size = GROUP_SIZE if pack.granularity == "group" else 1
    return {layer: MaskLayout(tuple(mask.shape), group_size, mask.coded) for layer, mask in pack.masks.items()}


def _fold(bundle: Bundle, batch: int, image_size: int, target: tvm.target.Target, fused: bool = False) -> _Folded:
    classes = max(len(pack.classes) for pack in bundle.packs.values())
    network = lower_backbone(bundle.backbone, classes, batch, image_size)
    _check_heads(network, bundle)
    layouts: dict[str, dict[str, MaskLayout]] = {}
    layout_of: dict[str, str] = {}
    for task, pack in bundle.packs.items():
        masks = _mask_layouts(pack)
        known = next((name for name, other in layouts.items() if other == masks), None)
        if known is None:
            known = pack.granularity if masks else "unmasked"
            if known in layouts:
                known = f"{known}_{len(layouts)}"
            layouts[known] = masks
        layout_of[task] = known
    module, functions = fold_tasks(network, layouts, target, fused)
    return _Folded(module, {task: functions[name] for task, name in layout_of.items()}, classes)


def _baked(folded: _Folded, bundle: Bundle, on_step: Callable[[str], None]) -> Iterator[tuple[Bundle, _Folded]]:
    """For each task the bundle with it alone, and its `main` with what `rewrite` gives, run here, as constants."""
    on_step("build the rewriting of weights")
    here = tvm.target.Target("llvm")
    mains = {functions.main for functions in folded.functions.values()}
    rewrites = {
        variable: function for variable, function in folded.module.functions.items() if variable.name_hint not in mains
    }
    machine = tvm.relax.VirtualMachine(
        build_executable(schedule_kernels(tvm.IRModule(rewrites), here), here), tvm.cpu()
    )
    kernels = {variable: function for variable, function in rewrites.items() if isinstance(function, tvm.tirx.PrimFunc)}
    for task, functions in folded.functions.items():
        on_step(f"bake the weights of {task}")
        arrays = task_parameters(functions.parameters, bundle.packs[task], bundle.tensors, folded.classes)
        weights = machine[functions.rewrite]([tvm.runtime.tensor(array) for array in arrays])
        main = folded.module[functions.main]
        baked = main.bind_params(dict(zip(main.params[1:], weights, strict=True))).with_attr("global_symbol", "main")
        yield (
            dataclasses.replace(bundle, packs={task: bundle.packs[task]}),
            _Folded(tvm.IRModule({**kernels, "main": baked}), {task: TaskFunctions("main", None, ())}, folded.classes),
        )
