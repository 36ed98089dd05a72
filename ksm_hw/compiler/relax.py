"""The compiler through Relax: lower, fold, schedule, build."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.s_tir.meta_schedule.database import Database

from ksm_hw.artifact.manifest import LIBRARY, OperatorEntry, TaskEntry
from ksm_hw.artifact.modes import FoldMode, Precision
from ksm_hw.artifact.parameters import FEWEST_SOFT_VALUES, HEAD_WEIGHT, task_parameters
from ksm_hw.compiler.build import Builder, Built, build_executable, export_library
from ksm_hw.compiler.compiled import (
    Compiled,
    OnStep,
    check_heads,
    common_image_size,
    group_tasks,
    most_classes,
)
from ksm_hw.compiler.dump import Dump, begin_dump
from ksm_hw.compiler.lower import lower_backbone
from ksm_hw.compiler.tuning.tuning_records import open_records
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import shapes_of
from ksm_hw.masks.mask_format import group_size
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.quantising.network import network_of
from ksm_hw.quantising.ranges import task_ranges
from ksm_hw.quantising.scheme import MOST_VALUES
from ksm_hw.runtime.tvm_import import carry_errors
from ksm_hw.toolchains.cuda import find_cuda_compiler
from ksm_hw.toolchains.linker import architecture_of
from ksm_hw.toolchains.targets import CompileTarget
from tvm_passes.relax.apply_schedules import SCHEDULE
from tvm_passes.relax.attach_operator_costs import operator_costs
from tvm_passes.relax.attach_workspace import workspace_bytes
from tvm_passes.relax.fold_task_mask import MaskLayout
from tvm_passes.relax.join_tasks import TaskFunctions
from tvm_passes.relax.kernels.mask_decoding import LANES
from tvm_passes.relax.pipeline import fold_tasks, plan_memory, schedule_kernels
from tvm_passes.relax.schedules.base.tuned import TunedSchedule, UnusableRecord
from tvm_passes.unknown_dtype import UnknownDtype

if LANES > FEWEST_SOFT_VALUES:
    raise AssertionError(f"kernels read {LANES} soft values at once, and masks have {FEWEST_SOFT_VALUES} or more")


@dataclass(frozen=True)
class _Folded:
    """Tasks before scheduling: the module, and the functions that each task uses."""

    bundle: Bundle
    module: tvm.IRModule
    functions: dict[str, TaskFunctions]


def compile_through_relax(
    bundle: Bundle,
    target: CompileTarget,
    fold: FoldMode,
    precision: Precision,
    batch: int,
    tuned: Path | None,
    dump: Path | None,
    assembly: bool,
    on_step: OnStep,
) -> Iterator[Compiled]:
    """Compiles the tasks of a bundle: all in one, with `bake` each for itself.

    Args:
        bundle, target, fold, precision, batch, tuned, dump, assembly, on_step: as `compile_bundle`.

    Raises:
        UserError: as `compile_bundle`.
    """
    if precision == "int8":
        check_integers(bundle, target, fold, batch)
    carry_errors()
    if target.device == "cuda":
        # What is missing is found now, not after minutes.
        find_cuda_compiler().check(target.architectures)
    records = open_records(tuned, target).database if tuned is not None else None
    written = None if dump is None else begin_dump(dump, assembly)
    on_step("lower")
    builder = Builder(tvm.target.Target(dict(target.tvm)), target.architectures)
    with _phases(written), _known_dtypes(bundle.backbone):
        folded = _fold(bundle, batch, builder.target, fused=fold == "fused", precision=precision)
    for part in _baked(folded, written, on_step) if fold == "bake" else [folded]:
        task = next(iter(part.functions)) if fold == "bake" else ""
        with _phases(written, task), _known_dtypes(bundle.backbone):
            with _usable_records(tuned):
                planned = _plan(part.module, builder.target, precision, records, on_step)
            on_step("build")
            built = builder.build(planned)
        if written is not None:
            written.write_assembly(built.executable, task)
        yield _compiled(part, planned, built, architecture_of(target.cpu), precision)


def check_integers(bundle: Bundle, target: CompileTarget, fold: FoldMode, batch: int) -> None:
    """Checks before the work that tasks can be compiled in int8.

    Raises:
        UserError: as `compile_bundle`.
    """
    if target.device != "cpu":
        raise UserError(f"int8 is for CPUs, and {target.name} computes on a GPU. Use --precision float32.")
    if fold == "fused":
        raise UserError(
            "With --fold fused weights are masked in every inference, where they would be quantised each time too. Use "
            "--fold switch or bake with int8."
        )
    for pack in bundle.packs.values():
        network = network_of(bundle, pack)
        if (values := batch * network.most_values) > MOST_VALUES:
            raise UserError(
                f"With --batch {batch} a tensor of {bundle.backbone} has {values} values, and one of int8 may have "
                f"{MOST_VALUES}. Compile for fewer images an inference."
            )
        task_ranges(network, pack)


@contextlib.contextmanager
def _known_dtypes(backbone: str) -> Iterator[None]:
    """Around passes: a type of values that one does not know is bad input."""
    try:
        yield
    except UnknownDtype as error:
        raise UserError(f"{error} So {backbone} cannot be compiled in this precision. Use float32.") from error


@contextlib.contextmanager
def _usable_records(tuned: Path | None) -> Iterator[None]:
    """Around scheduling: a record of a folder that cannot be applied is bad input."""
    try:
        yield
    except UnusableRecord as error:
        raise UserError(
            f"The records in {tuned} are damaged, or of another version of ksm-hw ({error}). Tune again, into another "
            "folder."
        ) from error


def _phases(dump: Dump | None, task: str = "") -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if dump is None else dump.phases(task)


def _plan(
    module: tvm.IRModule, target: tvm.target.Target, precision: Precision, records: Database | None, on_step: OnStep
) -> tvm.IRModule:
    """Schedules a module and plans its memory."""
    on_step("schedule")
    rules = [TunedSchedule(records)] if records is not None else []
    module = schedule_kernels(module, target, rules)
    for rule in rules:
        if rule.applied == 0:
            raise UserError(
                f"The tuning records hold none of any operator of this network in {precision} at this batch and image "
                f"size. Tune a bundle of the same backbone: ksm-hw tune --precision {precision}."
            )
        on_step(f"{rule.applied} operators with tuned schedules")
    return plan_memory(module, target)


def _compiled(part: _Folded, planned: tvm.IRModule, built: Built, architecture: str, precision: Precision) -> Compiled:
    """What the passes found out about a module, beside its machine code."""
    mains = [functions.main for functions in part.functions.values()]
    main = part.module[mains[0]]
    batch, channels, height, width = map(int, main.params[0].ty.shape)
    _, classes = map(int, main.ret_ty.shape)
    return Compiled(
        bundle=part.bundle,
        tasks={
            task: TaskEntry(functions.main, functions.rewrite, functions.parameters)
            for task, functions in part.functions.items()
        },
        tvm_version=tvm.__version__,
        precision=precision,
        input_shape=(batch, channels, height, width),
        output_shape=(batch, classes),
        workspace_bytes=max(workspace_bytes(planned[name]) for name in mains),
        operators=_operators(planned),
        export=lambda folder: export_library(built, folder / LIBRARY, architecture),
    )


def _operators(planned: tvm.IRModule) -> dict[str, OperatorEntry]:
    """What the passes wrote on the operators of inferences, by their symbols."""
    entries = {}
    for symbol, cost in operator_costs(planned).items():
        function = planned[symbol]
        shapes = tuple(tuple(map(int, parameter.ty.shape)) for parameter in function.params)
        entries[symbol] = OperatorEntry(cost.flops, cost.bytes, shapes, str(function.attrs.get(SCHEDULE, "")))
    return entries


def main_functions(
    bundle: Bundle, target: CompileTarget, batch: int = 1, precision: Precision = "float32"
) -> tvm.IRModule:
    """What a bundle's artifact runs for each image, before scheduling: every `main` of `--fold switch`.

    Raises:
        UserError: as `compile_bundle`.
    """
    folded = _fold(bundle, batch, tvm.target.Target(dict(target.tvm)), precision=precision)
    mains = {functions.main for functions in folded.functions.values()}
    return tvm.IRModule(
        {
            variable: function
            for variable, function in folded.module.functions.items()
            if variable.name_hint in mains or isinstance(function, tvm.tirx.PrimFunc)
        }
    )


def _mask_layouts(pack: TaskPack) -> dict[str, MaskLayout]:
    size = group_size(pack.granularity)
    return {layer: MaskLayout(tuple(mask.shape), size, mask.coded) for layer, mask in pack.masks.items()}


def _fold(
    bundle: Bundle, batch: int, target: tvm.target.Target, fused: bool = False, precision: Precision = "float32"
) -> _Folded:
    size, shapes = common_image_size(bundle), shapes_of(bundle.tensors)
    network = lower_backbone(bundle.backbone, most_classes(bundle), batch, size, shapes)
    (head,) = (weight.ty.shape for weight in network["main"].params if weight.name == HEAD_WEIGHT)
    check_heads(bundle, tuple(map(int, head))[1:])
    groups = group_tasks(bundle, _mask_layouts)
    layouts = {name: _mask_layouts(bundle.packs[tasks[0]]) for name, tasks in groups.items()}
    module, functions = fold_tasks(network, layouts, target, fused, precision == "int8")
    of_task = {task: name for name, tasks in groups.items() for task in tasks}
    return _Folded(bundle, module, {task: functions[of_task[task]] for task in bundle.packs})


def _baked(folded: _Folded, dump: Dump | None, on_step: OnStep) -> Iterator[_Folded]:
    """Each task alone, its `main` with what `rewrite` gives, run here, as constants."""
    on_step("build the rewriting of weights")
    here = tvm.target.Target("llvm")
    mains = {functions.main for functions in folded.functions.values()}
    rewrites = {
        variable: function for variable, function in folded.module.functions.items() if variable.name_hint not in mains
    }
    with _phases(dump):
        planned = plan_memory(schedule_kernels(tvm.IRModule(rewrites), here), here)
        machine = tvm.relax.VirtualMachine(build_executable(planned, here), tvm.cpu())
    kernels = {variable: function for variable, function in rewrites.items() if isinstance(function, tvm.tirx.PrimFunc)}
    bundle = folded.bundle
    for task, functions in folded.functions.items():
        on_step(f"bake the weights of {task}")
        arrays = task_parameters(functions.parameters, bundle.packs[task], bundle.tensors, most_classes(bundle))
        weights = machine[functions.rewrite]([tvm.runtime.tensor(array) for array in arrays])
        main = folded.module[functions.main]
        baked = main.bind_params(dict(zip(main.params[1:], weights, strict=True))).with_attr("global_symbol", "main")
        own = dataclasses.replace(bundle, packs={task: bundle.packs[task]})
        yield _Folded(own, tvm.IRModule({**kernels, "main": baked}), {task: TaskFunctions("main", None, ())})
