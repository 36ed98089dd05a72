"""What a compiler makes of the tasks of a bundle, whichever IR it goes through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.manifest import OperatorEntry, TaskEntry
from ksm_hw.artifact.modes import Precision
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.task_pack import TaskPack

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """One artifact's worth of compiled tasks.

    Attributes:
        bundle: the backbone and these tasks.
        tasks: what each task uses.
        tvm_version: of the compiler.
        precision, input_shape, output_shape, workspace_bytes, operators: as in the artifact's manifest.
        export: writes the libraries into a folder; it may raise UserError, as where there is no linker.
    """

    bundle: Bundle
    tasks: Mapping[str, TaskEntry]
    tvm_version: str
    precision: Precision
    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, int]
    workspace_bytes: int
    operators: Mapping[str, OperatorEntry]
    export: Callable[[Path], None]


def most_classes(bundle: Bundle) -> int:
    """Outputs of the head that all tasks of a bundle share: as many as the largest task has classes."""
    return max(len(pack.classes) for pack in bundle.packs.values())


def common_image_size(bundle: Bundle) -> int:
    """Pixels of the side of the images that all tasks of a bundle take.

    Raises:
        UserError: there are no tasks, or they need different inputs.
    """
    if not bundle.packs:
        raise UserError("The bundle holds no tasks. Learn one with `ksm-hw train`.")
    first, *others = bundle.packs.values()
    for pack in others:
        if pack.preprocessing.image_size != first.preprocessing.image_size:
            raise UserError(
                f"Task '{first.task}' takes images of {first.preprocessing.image_size} pixels and '{pack.task}' of "
                f"{pack.preprocessing.image_size}, and an artifact has one input. Compile them apart with --task."
            )
    return first.preprocessing.image_size


def group_tasks(bundle: Bundle, layouts_of: Callable[[TaskPack], Any]) -> dict[str, list[str]]:
    """The tasks of a bundle that can share functions, because their masks have the same layouts, by a name for each."""
    known: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    for task, pack in bundle.packs.items():
        layouts = layouts_of(pack)
        name = next((name for name, other in known.items() if other == layouts), None)
        if name is None:
            name = pack.granularity if pack.masks else "unmasked"
            if name in known:
                name = f"{name}_{len(known)}"
            known[name], groups[name] = layouts, []
        groups[name].append(task)
    return groups


def check_heads(bundle: Bundle, features: tuple[int, ...]) -> None:
    """Checks that every task's head takes the features that the network gives.

    Args:
        bundle: the tasks.
        features: shape of the head's weight without its classes: [features], of a convolution [features, 1, 1].

    Raises:
        UserError: one does not.
    """
    for task, pack in bundle.packs.items():
        if pack.head_weight.shape[1:] != features:
            raise UserError(
                f"Task '{task}' has a head of shape {list(pack.head_weight.shape)}; {bundle.backbone} needs "
                f"{[len(pack.classes), *features]}. The file is damaged or belongs to another network."
            )
