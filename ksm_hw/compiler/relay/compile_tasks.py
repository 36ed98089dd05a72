"""From a bundle to libraries, through Relay. Runs in Relay's environment."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relay
from tvm.relay.backend import te_compiler

from ksm_hw.artifact.manifest import TaskEntry
from ksm_hw.artifact.modes import FoldMode
from ksm_hw.artifact.parameters import FEWEST_SOFT_VALUES, HEAD_WEIGHT, task_parameters
from ksm_hw.compiler.compiled import OnStep, check_heads, common_image_size, group_tasks, most_classes
from ksm_hw.compiler.relay.lower import lower_backbone
from ksm_hw.compiler.relay.tuned_schedules import Schedules, tuned_schedules
from ksm_hw.compiler.tuning.progress import TunerName
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import shapes_of
from ksm_hw.masks.mask_format import group_size
from ksm_hw.masks.soft_mask import binary_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.runtime.relay.session import filled, weights_of
from ksm_hw.toolchains.linker import architecture_of, link_shared_library
from tvm_passes.relay.fold_task_mask import MaskLayout
from tvm_passes.relay.pipeline import Folded, ModuleContent, build_settings, fold_tasks, same


@dataclasses.dataclass(frozen=True)
class _Library:
    """A built function and the bytes of what it computes on the way."""

    factory: Any
    workspace_bytes: int


def compile_tasks(
    bundle: Bundle,
    output: Path,
    target: Mapping[str, Any],
    link: Sequence[str],
    fold: FoldMode,
    batch: int,
    tuned: tuple[TunerName, str] | None,
    on_step: OnStep,
) -> list[dict[str, Any]]:
    """Compiles the tasks of a bundle: all in one part, with `bake` each in its own.

    Args:
        bundle, fold, batch, on_step: as `compile_bundle`.
        output: folder in which each part gets a folder with its libraries.
        target: the dictionary of TVM's target.
        link: command of the linker.
        tuned: the tuner and the folder of records whose schedules are taken.

    Returns:
        For each part its `folder`, `tasks` (as `TaskEntry`), `workspace_bytes`, `precision` and `tvm_version`.

    Raises:
        UserError: there is no such network, a task's head does not fit, the linker fails, or the records are damaged or
            have none of the network's operators.
    """
    ask_for_build_flags_once()
    tvm_target = tvm_target_of(target)
    on_step("lower")
    size, shapes = common_image_size(bundle), shapes_of(bundle.tensors)
    network = lower_backbone(bundle.backbone, most_classes(bundle), batch, size, shapes)
    (head,) = (p.checked_type.shape for p in network["main"].params if p.name_hint == HEAD_WEIGHT)
    check_heads(bundle, tuple(map(int, head))[1:])
    precision = str(network["main"].params[0].checked_type.dtype)
    groups = group_tasks(bundle, _mask_layouts)
    with tuned_schedules(tuned) as schedules:
        folded = {
            name: fold_tasks(network, _common_layouts(bundle, tasks), tvm_target, fused=fold == "fused")
            for name, tasks in groups.items()
        }
        if fold == "bake":
            parts = _baked(bundle, groups, folded, tvm_target, schedules, on_step)
        else:
            parts = [_together(bundle, groups, folded, tvm_target, schedules, on_step)]
        # Any task's will do: they differ in what rewrites their weights.
        schedules.check(next(iter(folded.values())).main, tvm_target, on_step)
    return [
        {**_write(output, f"{number}", tasks, libraries, link), "precision": precision}
        for number, (tasks, libraries) in enumerate(parts)
    ]


def tvm_target_of(target: Mapping[str, Any]) -> tvm.target.Target:
    """The target for TVM 0.19, which does not see by the triple that it has schedules for ARM."""
    arm = target["kind"] == "llvm" and architecture_of(target) == "aarch64"
    return tvm.target.Target({**target, "device": "arm_cpu", "keys": ["arm_cpu", "cpu"]} if arm else dict(target))


@functools.cache
def ask_for_build_flags_once() -> None:
    """Lets TVM's compiler in this process ask its library for its build flags, a hundred strings, once.

    Left alone it asks for them for every kernel that it lowers.
    """
    te_compiler.libinfo = functools.cache(te_compiler.libinfo)


_Part = tuple[dict[str, TaskEntry], dict[str, _Library]]


def _together(
    bundle: Bundle,
    groups: Mapping[str, list[str]],
    folded: Mapping[str, Folded],
    target: tvm.target.Target,
    schedules: Schedules,
    on_step: OnStep,
) -> _Part:
    """All tasks, whose functions stay what they are for all tasks of a layout."""
    libraries: dict[str, _Library] = {}
    mains: dict[str, tvm.IRModule] = {}
    entries: dict[str, TaskEntry] = {}
    for name, tasks in groups.items():
        functions = folded[name]
        main = next((known for known, other in mains.items() if same(functions.main, other)), f"main_{name}")
        if main not in mains:
            on_step(f"build {main}")
            mains[main] = functions.main
            holds: ModuleContent = "inference" if functions.rewrite else "both"
            libraries[main] = _build(functions.main, target, holds, schedules.meta_schedule)
        rewrite = None
        if functions.rewrite is not None:
            rewrite = f"rewrite_weights_{name}"
            on_step(f"build {rewrite}")
            libraries[rewrite] = _build(functions.rewrite, target, "rewrite")
        entries |= {task: TaskEntry(main, rewrite, functions.parameters) for task in tasks}
    return {task: entries[task] for task in bundle.packs}, libraries


def _baked(
    bundle: Bundle,
    groups: Mapping[str, list[str]],
    folded: Mapping[str, Folded],
    target: tvm.target.Target,
    schedules: Schedules,
    on_step: OnStep,
) -> list[_Part]:
    """Each task by itself: its `main` with what `rewrite` gives, run here, as constants."""
    parts: dict[str, _Part] = {}
    for name, tasks in groups.items():
        on_step("build the rewriting of weights")
        functions = folded[name]
        assert functions.rewrite is not None
        rewrite = _build(functions.rewrite, tvm.target.Target("llvm"), "rewrite")
        executor = tvm.contrib.graph_executor.GraphModule(rewrite.factory["default"](tvm.cpu()))
        for task in tasks:
            on_step(f"bake {task}")
            arrays = task_parameters(functions.parameters, bundle.packs[task], bundle.tensors, most_classes(bundle))
            for parameter, array in zip(functions.parameters, arrays, strict=True):
                executor.set_input(parameter, filled(executor, parameter, array))
            executor.run()
            weights = {weight: tensor.numpy() for weight, tensor in weights_of(executor).items()}
            bound = relay.build_module.bind_params_by_name(functions.main["main"], weights)
            library = _build(tvm.IRModule.from_expr(bound), target, "inference", schedules.meta_schedule)
            parts[task] = {task: TaskEntry("main", None, ())}, {"main": library}
    return [parts[task] for task in bundle.packs]


def _build(
    module: tvm.IRModule, target: tvm.target.Target, holds: ModuleContent, meta_schedule: bool = False
) -> _Library:
    with build_settings(holds, meta_schedule):
        factory = relay.build(module, target=target)
    return _Library(factory, _workspace_bytes(json.loads(factory.get_graph_json())))


def _write(
    output: Path, folder: str, tasks: dict[str, TaskEntry], libraries: dict[str, _Library], link: Sequence[str]
) -> dict[str, Any]:
    def link_library(path: str, objects: list[str], **_options: object) -> None:
        link_shared_library(link, path, objects)

    (output / folder).mkdir(parents=True)
    for name, library in libraries.items():
        library.factory.export_library(str(output / folder / f"{name}.so"), fcompile=link_library)
    return {
        "folder": folder,
        "tasks": {task: dataclasses.asdict(entry) for task, entry in tasks.items()},
        "workspace_bytes": max(
            library.workspace_bytes for name, library in libraries.items() if name.startswith("main")
        ),
        "tvm_version": tvm.__version__,
    }


def _workspace_bytes(graph: dict[str, Any]) -> int:
    """Bytes of the storage that a graph's operators write to, each counted with its largest use."""
    (_, storages), (_, shapes), (_, dtypes) = (graph["attrs"][key] for key in ("storage_id", "shape", "dltype"))
    given = {storages[graph["node_row_ptr"][node]] for node in graph["arg_nodes"]}
    sizes: dict[int, int] = {}
    for storage, shape, dtype in zip(storages, shapes, dtypes, strict=True):
        if storage not in given:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            sizes[storage] = max(sizes.get(storage, 0), size)
    return sum(sizes.values())


def _mask_layouts(pack: TaskPack) -> dict[str, MaskLayout]:
    """Without the number of soft values, by which tasks that share functions may differ."""
    size = group_size(pack.granularity)
    return {layer: MaskLayout(tuple(mask.shape), size, mask.coded, 0) for layer, mask in pack.masks.items()}


def _common_layouts(bundle: Bundle, tasks: Sequence[str]) -> dict[str, MaskLayout]:
    """The layouts of tasks that share functions."""
    packs = [bundle.packs[task] for task in tasks]
    most = {
        layer: max(FEWEST_SOFT_VALUES, *(int((~binary_mask(pack.masks[layer])).sum()) for pack in packs))
        for layer in packs[0].masks
    }
    return {
        layer: dataclasses.replace(layout, soft_values=most[layer]) for layer, layout in _mask_layouts(packs[0]).items()
    }
