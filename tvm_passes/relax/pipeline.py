"""The compiler as one list of passes in phases, from a network to what machine code is generated from.

    lowered     as it comes
    folded      mask and BatchNorm become ops on weights; padding joins its convolution
    layouts     activations channels-last, and before changes of shape; for CPUs weights packed, or transformed for
                Winograd's form; or int8
    lifted      everything that depends on parameters alone leaves `main`        (not with `fused`)
    joined      what differs between masks of different layouts is joined into one module
    kernels     ops become fused loops
    scheduled   each loop nest gets a schedule, and what it costs as attributes; convolutions of int8 become loops
    planned     calls become instructions of Relax's virtual machine, over memory that is planned ahead
    loops       functions such as exp become arithmetic, loops what LLVM, or a GPU's code generator, takes

Folded, layouts and lifted run once for each layout of masks (`MaskLayout` of every layer), what follows on the joined
module; the last inside `tvm.compile`. Each phase is a `Sequential` of that name, so that a `PassInstrument` sees the
module where it ends.
"""

from collections.abc import Mapping, Sequence

import tvm
from tvm.ir.transform import Pass, Sequential
from tvm.relax import backend, transform
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline
from tvm.tirx.transform import ConvertSSA, SkipAssert

from tvm_passes.relax.apply_schedules import ApplySchedules
from tvm_passes.relax.attach_operator_costs import AttachOperatorCosts
from tvm_passes.relax.attach_workspace import AttachWorkspace
from tvm_passes.relax.channels_last import ConvertToChannelsLast
from tvm_passes.relax.fold_padding import FoldPadding
from tvm_passes.relax.fold_task_mask import FoldTaskMask, MaskLayout
from tvm_passes.relax.fuse_expansions import FuseExpansions
from tvm_passes.relax.fuse_weight_rewrite import FuseWeightRewrite
from tvm_passes.relax.join_tasks import TaskFunctions, join_tasks
from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.legalise_take import legalise_take
from tvm_passes.relax.loops.allocate_on_stack import AllocateOnStack
from tvm_passes.relax.loops.lower_loops import LowerLoops
from tvm_passes.relax.loops.neon_moves import NeonMoves
from tvm_passes.relax.loops.prefetch import InsertPrefetch
from tvm_passes.relax.loops.share_loops import ShareLoops
from tvm_passes.relax.loops.skip_padding import SkipPadding
from tvm_passes.relax.loops.unequal_vectors import UnequalVectors
from tvm_passes.relax.loops.vector_functions import VectorFunctions, VectorizeErf
from tvm_passes.relax.loops.vector_reductions import VectorReductions
from tvm_passes.relax.loops.whole_tiles import SplitWholeTiles
from tvm_passes.relax.multiply_by_reciprocals import MultiplyByReciprocals
from tvm_passes.relax.name_parameters import NameParameters
from tvm_passes.relax.quantise import Quantise
from tvm_passes.relax.schedules import target_rules
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit
from tvm_passes.relax.schedules.gpu.limits import gpu_limits
from tvm_passes.relax.separate_kernels import SeparateKernels
from tvm_passes.relax.sink_reshapes import SinkReshapes
from tvm_passes.relax.weight_layouts import WeightLayouts
from tvm_passes.relax.write_integer_kernels import WriteIntegerKernels

PHASES = ("lowered", "folded", "layouts", "lifted", "joined", "kernels", "scheduled", "planned", "loops")

MaskLayouts = Mapping[str, MaskLayout]


def fold_tasks(
    network: tvm.IRModule,
    layouts: Mapping[str, MaskLayouts],
    target: tvm.target.Target,
    fused: bool = False,
    integers: bool = False,
) -> tuple[tvm.IRModule, dict[str, TaskFunctions]]:
    """Phases folded, layouts, lifted and joined.

    Args:
        network: `main(input, *parameters)`, as lowered.
        layouts: the masks of every layer, by a name for each combination that tasks have.
        target: what the module will be scheduled for.
        fused: leave the rewriting of weights inside `main`.
        integers: compute in int8, and not in the network's own type.

    Returns:
        The module, and for each name of `layouts` its functions. Combinations whose `main` is the same share it.
    """
    # Worth it only if weights are rewritten once a task. One pass for all layouts, so that they share its kernels.
    weight_layouts: list[Pass] = (
        [] if fused or "cpu" not in target.keys else [SinkReshapes(), WeightLayouts(vector_unit(target))]
    )
    if integers:
        weight_layouts = [Quantise(integer_vectors(target), vector_unit(target).cores)]
    # Integer operators are found by the divisions in them (`activations.py`), and compute what those say.
    arithmetic = [] if integers else [MultiplyByReciprocals()]
    network = _phase("lowered", [])(network)
    folded = {}
    for name, masks in layouts.items():
        part = name if len(layouts) > 1 else ""
        phases = [
            _phase("folded", [FoldPadding(), *arithmetic, FoldTaskMask(masks, f"_{name}", rounds=integers)], part),
            _phase("layouts", [ConvertToChannelsLast(), *weight_layouts], part),
            _phase("lifted", [NameParameters(), *([] if fused else [transform.LiftTransformParams()])], part),
        ]
        folded[name] = Sequential(phases)(network)
    module, functions = join_tasks(folded)
    return _phase("joined", [])(module), functions


def fuse_kernels(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Phase kernels, of a module as `fold_tasks` leaves it: from relax ops to fused loops."""
    passes = [
        *([FuseWeightRewrite(target)] if "cpu" in target.keys else []),
        transform.LegalizeOps({"relax.take": legalise_take}),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        *([FuseExpansions(vector_unit(target))] if "cpu" in target.keys else []),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    with target:
        return _phase("kernels", passes)(module)


def schedule_kernels(
    module: tvm.IRModule, target: tvm.target.Target, tuned: Sequence[ScheduleRule] = ()
) -> tvm.IRModule:
    """Phases kernels and scheduled: from relax ops to scheduled loops, for a CPU or a GPU.

    Args:
        module: as `fold_tasks` leaves it.
        target: what to schedule for.
        tuned: rules that are asked before the target's own.
    """
    passes = [
        ApplySchedules([*tuned, *target_rules(target)]),
        *([WriteIntegerKernels()] if "cpu" in target.keys else []),
        *([SeparateKernels()] if "gpu" in target.keys and gpu_limits(target).staged else []),
        AttachOperatorCosts(),
    ]
    module = fuse_kernels(module, target)
    with target:
        return _phase("scheduled", passes)(module)


def plan_memory(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Phase planned, of a module as `schedule_kernels` leaves it: Relax's own passes, and one that tells their plan."""
    passes = [
        backend.DispatchSampling(),
        backend.DispatchSortScan(),
        transform.LegalizeOps(),
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        AttachWorkspace(),
        transform.RewriteCUDAGraph(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
    with target:
        return _phase("planned", passes)(module)


def loop_pipeline() -> str:
    """Phase loops, by the name that `tvm.compile` takes it by: TVM knows such passes by name alone."""
    register_tir_pipeline(_LOOP_PIPELINE, _lower_loops)
    return _LOOP_PIPELINE


_LOOP_PIPELINE = "ksm-hw"


def _lower_loops() -> tuple[Pass, object, object]:
    """Passes of all loops, and what makes those of the host's functions and of the device's behind them."""
    lower, finalize_host, finalize_device = default_s_tir_pipeline()

    def finish_host() -> Pass:
        return Sequential([ShareLoops(), AllocateOnStack(), finalize_host()])

    # Relax's functions check the shapes and types of what they are given, and make all else themselves. To check it
    # again before each loop nest, strides and devices too, was more code than many of the loops.
    before = [InsertPrefetch(), SkipPadding(), UnequalVectors(), VectorReductions(), VectorizeErf()]
    passes = [*before, LowerLoops(lower), SplitWholeTiles(), VectorFunctions(), NeonMoves(), ConvertSSA(), SkipAssert()]
    return _phase("loops", passes), finish_host, finalize_device


def _phase(name: str, passes: Sequence[Pass], part: str = "") -> Pass:
    """The passes of a phase, under its name, and behind a space that of the part of the tasks that they run on."""
    return Sequential(list(passes), name=f"{name} {part}".strip())
