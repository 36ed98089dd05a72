"""Relay's compiler as one list of passes in phases.

    fold      padding joins its convolution; mask and BatchNorm become ops on weights
    layout    activations and weights get the layouts that TVM's operators of the target want
    lift      everything that depends on parameters alone leaves `main`        (the last two not with `fused`)

They run once for each layout of masks (`MaskLayout` of every layer). `relay.build` schedules what is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import tvm
import tvm.ir
from tvm import relay
from tvm.relay import transform

from tvm_passes.relay.fold_task_mask import FoldTaskMask, MaskLayout
from tvm_passes.relay.lift_weights import lift_weights

ModuleContent = Literal["both", "inference", "rewrite"]

# What would put ops on weights back into `main`.
_OPS_ON_WEIGHTS = ["CombineParallelConv2D", "CombineParallelDense", "CombineParallelBatchMatmul", "FoldScaleAxis"]


@dataclass(frozen=True)
class Folded:
    """The functions that tasks with one layout of masks use, each the `main` of a module.

    Attributes:
        main: `main(input, *weights)`, or with `fused` `main(input, *parameters)`.
        rewrite: from the parameters to the tuple of weights; None with `fused`.
        parameters: names, in order, of what `rewrite` takes, or `main` with `fused`.
    """

    main: tvm.IRModule
    rewrite: tvm.IRModule | None
    parameters: tuple[str, ...]


# The layout phase ran: TVM's layouts for ARM are no input of theirs. In ops on weights alone there is nothing for
# SimplifyExpr to find, and over thousands of small ones it takes most of the time.
_DISABLED: dict[ModuleContent, list[str]] = {
    "both": _OPS_ON_WEIGHTS,
    "inference": [*_OPS_ON_WEIGHTS, "AlterOpLayout"],
    "rewrite": ["SimplifyExpr"],
}


def build_settings(module_holds: ModuleContent, meta_schedule: bool = False) -> tvm.transform.PassContext:
    """The settings of TVM's passes for a module of inference, of the rewriting of weights, or of both.

    With `meta_schedule` operators get the schedules of the MetaSchedule database that is entered.

    LLVM 22 refuses bilinear resizing after TVM's elimination of common subexpressions, which binds float values.
    """
    disabled = _DISABLED[module_holds]
    config = {"tir.disable_cse_tir": True, "relay.backend.use_meta_schedule": meta_schedule}
    return tvm.transform.PassContext(opt_level=3, disabled_pass=disabled, config=config)


def fold_tasks(
    network: tvm.IRModule, masks: Mapping[str, MaskLayout], target: tvm.target.Target, fused: bool = False
) -> Folded:
    """All phases, for one layout of masks.

    Args:
        network: `main(input, *parameters)`, as lowered.
        masks: the mask of each masked layer, by its path.
        target: what the module will be built for.
        fused: leave the rewriting of weights inside `main`.
    """
    fold = [
        transform.InferType(),
        transform.FoldExplicitPadding(),
        transform.InferType(),
        FoldTaskMask(masks),
        transform.InferType(),
    ]
    layout = [
        transform.SimplifyInference(),
        transform.FoldConstant(),
        transform.CanonicalizeOps(),
        transform.InferType(),
        transform.AlterOpLayout(),
        transform.FoldConstant(),
        transform.InferType(),
    ]
    with target, build_settings("both"):
        module = tvm.transform.Sequential(fold if fused else [*fold, *layout])(network)
    used = _used_parameters(module)
    if fused:
        return Folded(used, None, _parameter_names(used))
    main, rewrite = lift_weights(used)
    return Folded(main, rewrite, _parameter_names(used))


def _used_parameters(module: tvm.IRModule) -> tvm.IRModule:
    """The module whose `main` takes no parameter that it does not use, such as the counters of BatchNorms."""
    function = module["main"]
    free = set(relay.analysis.free_vars(function.body))
    parameters = [function.params[0], *(variable for variable in function.params[1:] if variable in free)]
    return transform.InferType()(tvm.IRModule.from_expr(relay.Function(parameters, function.body)))


def _parameter_names(module: tvm.IRModule) -> tuple[str, ...]:
    return tuple(variable.name_hint for variable in module["main"].params[1:])


def same(module: tvm.IRModule, other: tvm.IRModule) -> bool:
    """Whether two modules compute the same."""
    return bool(tvm.ir.structural_equal(module, other, map_free_vars=True))
