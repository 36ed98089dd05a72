"""The compiler as one list of passes in phases.

    fold      mask and BatchNorm become ops on weights; padding joins its convolution
    layout    activations channels-last; for CPUs weights packed, or transformed for Winograd's form
    lift      everything that depends on parameters alone leaves `main`        (not with `fused`)
    join      what differs between masks of different layouts is joined into one module
    kernels   ops become fused loops, and each gets a schedule

The first three run once for each layout of masks (`MaskLayout` of every layer), the last on the joined module.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax import transform
from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule

from tvm_passes.relax.channels_last import ConvertToChannelsLast
from tvm_passes.relax.fold_padding import FoldPadding
from tvm_passes.relax.fold_task_mask import FoldTaskMask, MaskLayout
from tvm_passes.relax.fuse_weight_rewrite import FuseWeightRewrite
from tvm_passes.relax.schedules import target_rules
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit
from tvm_passes.relax.weight_layouts import WeightLayouts

MaskLayouts = Mapping[str, MaskLayout]


@dataclass(frozen=True)
class TaskFunctions:
    """The functions that tasks with one layout of masks use, and the parameters these take.

    Attributes:
        main: `main(input, *weights)`, or with `fused` `main(input, *parameters)`.
        rewrite: from a tuple of parameters to the tuple of weights; None with `fused`.
        parameters: names, in order, of what `rewrite` takes, or `main` with `fused`.
    """

    main: str
    rewrite: str | None
    parameters: tuple[str, ...]


def fold_tasks(
    network: tvm.IRModule, layouts: Mapping[str, MaskLayouts], target: tvm.target.Target, fused: bool = False
) -> tuple[tvm.IRModule, dict[str, TaskFunctions]]:
    """Phases fold, layout, lift and join.

    Args:
        network: `main(input, *parameters)`, as lowered.
        layouts: the masks of every layer, by a name for each combination that tasks have.
        target: what the module will be scheduled for.
        fused: leave the rewriting of weights inside `main`.

    Returns:
        The module, and for each name of `layouts` its functions. Combinations whose `main` is the same share it.
    """
    functions: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    tasks: dict[str, TaskFunctions] = {}
    mains: dict[str, relax.Function] = {}
    weight_layouts = _weight_layouts(target, fused)
    for name, masks in layouts.items():
        folded = _fold_one(network, masks, name, weight_layouts)
        parameters = tuple(parameter.name for parameter in folded["main"].params[1:])
        folded = _with_identifiers(folded)
        if not fused:
            folded = transform.LiftTransformParams()(folded)
        main = folded["main"].without_attr("global_symbol")
        main_name = next((known for known, other in mains.items() if _same(main, other)), f"main_{name}")
        rewrite_name = None if fused else f"rewrite_weights_{name}"
        for variable, function in folded.functions.items():
            if isinstance(function, tvm.tirx.PrimFunc):
                functions[variable] = function
            elif variable.name_hint == "main_transform_params":
                functions[tvm.ir.GlobalVar(rewrite_name)] = function.with_attr("global_symbol", rewrite_name)
            elif main_name not in mains:
                mains[main_name] = main
                # Each `main` was folded from the same network, and no two functions may share a variable.
                own = relax.utils.copy_with_new_vars(main)
                functions[tvm.ir.GlobalVar(main_name)] = own.with_attr("global_symbol", main_name)
        tasks[name] = TaskFunctions(main_name, rewrite_name, parameters)
    return tvm.IRModule(functions), tasks


def _weight_layouts(target: tvm.target.Target, fused: bool) -> list[tvm.transform.Pass]:
    """Passes whose transform of weights is worth it only if it is done once a task."""
    return [] if fused or "cpu" not in target.keys else [WeightLayouts(vector_unit(target))]


def _fold_one(
    network: tvm.IRModule, masks: MaskLayouts, name: str, weight_layouts: list[tvm.transform.Pass]
) -> tvm.IRModule:
    fold = [
        FoldPadding(),
        FoldTaskMask(masks, f"_{name}"),
    ]
    layout = [
        ConvertToChannelsLast(),
        *weight_layouts,
    ]
    return tvm.transform.Sequential([*fold, *layout])(network)


def _with_identifiers(module: tvm.IRModule) -> tvm.IRModule:
    """The module with parameters of `main` named as C names them: kernels for a GPU are source, and take the names."""
    main = module["main"]
    renamed = {variable: relax.Var(re.sub(r"\W", "_", variable.name), variable.ty) for variable in main.params}
    body = main.bind_params(renamed).body
    module.update_func(
        module.get_global_var("main"), relax.Function(list(renamed.values()), body, main.ret_ty, attrs=main.attrs)
    )
    return module


def _same(function: relax.Function, other: relax.Function) -> bool:
    return bool(tvm_ffi.structural_equal(function, other, map_free_vars=True))


def schedule_kernels(
    module: tvm.IRModule, target: tvm.target.Target, tuned: Sequence[ScheduleRule] = ()
) -> tvm.IRModule:
    """Phase kernels: from relax ops to scheduled loops, for a CPU or a GPU.

    Args:
        module: as `fold_tasks` leaves it.
        target: what to schedule for.
        tuned: rules that are asked before the target's own.
    """
    with target:
        return dlight.ApplyDefaultSchedule(*tuned, *target_rules(target))(fuse_kernels(module, target))


def fuse_kernels(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """The part of phase kernels before scheduling: from relax ops to fused loops."""
    kernels = [
        *([FuseWeightRewrite(target)] if "cpu" in target.keys else []),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    with target:
        return tvm.transform.Sequential(kernels)(module)
