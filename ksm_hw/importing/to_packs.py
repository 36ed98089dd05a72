"""From what a checkpoint holds to task packs over a backbone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.importing.checkpoint import Checkpoint, ImportedTask
from ksm_hw.masks.bundle import Bundle, check_task_name
from ksm_hw.masks.growth import Tensors, by_kind, padded_tensor, shapes_of
from ksm_hw.masks.mask_format import Granularity, mask_shape
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import PackedMask, binary_mask, fewest_bits, pack_mask, padded, soft_values
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import backbone_tensors, check_can_grow, head_path, load_backbone_tensors, widen


def chosen_tasks(path: Path, checkpoint: Checkpoint, wanted: Sequence[str]) -> tuple[ImportedTask, ...]:
    """The tasks that a user wants, under the names that they give.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: which has them.
        wanted: `NAME` or `NAME=OTHER` each; none are all. A file of one task takes any name.

    Raises:
        UserError: there is no such task, or a name that no task can have.
    """
    tasks = {task.name: task for task in checkpoint.tasks}
    if len(tasks) == 1 and len(wanted) == 1 and "=" not in wanted[0]:
        wanted = [f"{next(iter(tasks))}={wanted[0]}"]
    chosen = []
    for each in wanted or tasks:
        name, _, other = each.partition("=")
        if name not in tasks:
            raise UserError(f"{path} has no task named '{name}'. There are: {', '.join(tasks) or 'none'}.")
        chosen.append(dataclasses.replace(tasks[name], name=other or name, source=name))
    for number, task in enumerate(chosen):
        try:
            check_task_name(task.name)
        except UserError as error:
            raise UserError(f"{path}: {error} Give it another name: --task TASK=NAME.") from error
        if task.name in {other.name for other in chosen[:number]}:
            raise UserError(f"{path}: two tasks would be called '{task.name}', or it is wanted twice. Give TASK=NAME.")
    return tuple(chosen)


def imported_bundle(
    path: Path,
    checkpoint: Checkpoint,
    tasks: Sequence[ImportedTask],
    network: nn.Module,
    backbone: str,
    method: str,
    preprocessing: Preprocessing,
    classes: Mapping[str, tuple[str, ...]],
    facts: Mapping[str, Any],
) -> Bundle:
    """The tasks as packs over the checkpoint's backbone, or over that of the network where it has none.

    Args:
        path: of the checkpoint, for messages.
        checkpoint, tasks: what is imported.
        network: the backbone with the user's weights, in its published widths; it may be changed.
        backbone: its name.
        method: name of the format.
        preprocessing: of all tasks.
        classes: names of classes by task; those of others are numbered.
        facts: kept in the packs.

    Raises:
        UserError: a tensor is missing or has a shape that does not fit, or the network cannot grow.
    """
    try:
        tensors, features = _fitted_backbone(checkpoint, tasks, network)
        over = Bundle(backbone, sha256_of_tensors(tensors), tensors, {})
        packs = {}
        for task in tasks:
            names = classes.get(task.name) or tuple(f"class {number}" for number in range(len(task.head_bias)))
            pack = _pack_of(task, over, features, checkpoint.granularity, method, preprocessing, names)
            packs[task.name] = dataclasses.replace(pack, facts=dict(facts))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return dataclasses.replace(over, packs=packs)


def _fitted_backbone(
    checkpoint: Checkpoint, tasks: Sequence[ImportedTask], network: nn.Module
) -> tuple[dict[str, Any], int]:
    """The backbone's tensors, which fit the network, and the features that its head takes."""
    published = shapes_of(backbone_tensors(network))
    tensors = {name: array.copy() for name, array in (checkpoint.tensors or backbone_tensors(network)).items()}
    shapes = shapes_of(tensors)
    if any(_is_narrower(task, tensors) for task in tasks):
        check_can_grow(network)
    if shapes != published:
        widen(network, shapes)
    features, *window = network.state_dict()[f"{head_path(network)}.weight"].shape[1:]
    if window:
        raise UserError(
            f"{type(network).__name__} ends in a convolution, and the heads of checkpoints are linear layers. Give "
            "another --backbone."
        )
    for task in tasks:
        own = task.head_weight.shape[1]
        if own > features or (own < features and not _is_narrower(task, tensors)):
            raise UserError(
                f"The head of task '{task.name}' takes {own} features, and the backbone gives {features}. Give another "
                "--backbone."
            )
    load_backbone_tensors(network, tensors)
    return tensors, features


def _pack_of(
    task: ImportedTask,
    over: Bundle,
    features: int,
    granularity: Granularity,
    method: str,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
) -> TaskPack:
    """The task as a pack over a backbone, in its widths; the heads there take so many features."""
    if len(classes) != len(task.head_bias):
        raise UserError(f"Task '{task.name}' has {len(task.head_bias)} classes, and {len(classes)} names are given.")
    norms, parameters = by_kind(_own_tensors(task, over.tensors), over.tensors)
    return TaskPack(
        task=task.name,
        classes=classes,
        method=method,
        granularity=granularity,
        backbone=over.backbone,
        backbone_sha256=over.backbone_sha256,
        preprocessing=preprocessing,
        masks={
            layer: _packed(make(), mask_shape(over.tensors[weight_of(layer)].shape, granularity))
            for layer, make in task.masks.items()
        },
        batch_norms=norms,
        parameters=parameters,
        head_weight=padded(task.head_weight, (len(task.head_bias), features)),
        head_bias=task.head_bias,
    )


def _packed(mask: np.ndarray, shape: tuple[int, ...]) -> PackedMask:
    soft = padded(mask.astype(np.float32), shape)
    return pack_mask(soft, fewest_bits(soft))


def _is_narrower(task: ImportedTask, tensors: Tensors) -> bool:
    """Whether the task was learned before the network grew."""
    return any(name in tensors and array.shape != tensors[name].shape for name, array in task.tensors.items())


def _own_tensors(task: ImportedTask, tensors: Tensors) -> dict[str, Any]:
    """BatchNorms and other tensors that the task has instead of the backbone's, in the backbone's widths.

    Raises:
        UserError: the backbone has no such tensor, it is smaller, or a narrower task lacks one of its own.
    """
    narrower = _is_narrower(task, tensors)
    own: dict[str, Any] = {}
    for name, array in task.tensors.items():
        wide = tensors.get(name)
        if wide is None or wide.ndim != array.ndim or len(array) > len(wide):
            raise UserError(f"Task '{task.name}' has '{name}' {list(array.shape)}, which the backbone does not have.")
        own[name] = padded_tensor(name, array, wide.shape)
    missing = sorted(name for name, array in tensors.items() if array.ndim == 1 and name not in task.tensors)
    if narrower and missing:
        raise UserError(
            f"Task '{task.name}' is narrower than the backbone and has no '{missing[0]}' of its own, so that its width "
            "there is not known. The checkpoint is incomplete."
        )
    return own


def describe(
    path: Path, title: str, checkpoint: Checkpoint, tasks: Sequence[ImportedTask], packs: Mapping[str, TaskPack]
) -> dict[str, Any]:
    """What a file holds and what of it is taken, as packs by the tasks' names, for people and as JSON."""
    taken = {task.source for task in tasks}
    return {
        "checkpoint": str(path),
        "format": title,
        "granularity": checkpoint.granularity,
        "backbone": "in the file" if checkpoint.tensors is not None else "as given",
        "tasks": {
            task.name: {
                "classes": len(task.head_bias),
                "masked_layers": len(task.masks),
                **_shares(packs[task.name]),
                "own_tensors": len(task.tensors),
            }
            for task in tasks
        },
        "left_out": [task.name for task in checkpoint.tasks if task.name not in taken],
        "notes": list(checkpoint.notes),
    }


def _shares(pack: TaskPack) -> dict[str, float]:
    """Which part of a task's mask values is 1, and which -1."""
    total = max(sum(math.prod(mask.shape) for mask in pack.masks.values()), 1)
    ones = sum(int(binary_mask(mask).sum()) for mask in pack.masks.values())
    minus_ones = sum(int((soft_values(mask) == -1).sum()) for mask in pack.masks.values())
    return {"ones": ones / total, "minus_ones": minus_ones / total}
