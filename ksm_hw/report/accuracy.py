"""The accuracy of a compiled task on a test set, beside that of PyTorch in float32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import TaskData, load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import Bundle, load_bundle, task_of
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.runtime.any_session import AnySession

_BATCH = 50


@dataclass(frozen=True)
class Accuracy:
    """Of a task on a test set.

    Attributes:
        images: of the test set.
        compiled, pytorch: share in 0…1 whose top class is right, in the compiled model and in PyTorch in float32.
        drop: points that the compiled model loses beside that PyTorch, whose backbone is rounded where the artifact's
            is; below 0 where it gains.
        rounding_drop: points that PyTorch loses by the rounding of the artifact's backbone, beside the same backbone
            in float32; None where it is not rounded, or nobody knows what it was.
        whole_drop: points that the compiled model loses beside PyTorch over the backbone in float32: both together.
    """

    images: int
    compiled: float
    pytorch: float
    drop: float
    rounding_drop: float | None = None
    whole_drop: float | None = None


def find_test_set(data: str, artifacts: Sequence[Path], task: str | None = None, whole: bool = False) -> TaskData:
    """The set that tasks are tested on, looked at before the work: those of its classes are.

    Args:
        data: a registered set's name, or a folder with `train/` and `test/`; its test images count.
        artifacts: folders that `ksm-hw compile` wrote.
        task: the only one that is asked for.
        whole: whether a registered set gives all of its images (`load_task_data`).

    Raises:
        UserError: there is no such set, folder or task, or no task has these classes.
    """
    found = load_task_data(data, whole=whole)
    bundles = [load_bundle(artifact).packs for artifact in artifacts]
    packs = [pack for known in bundles for pack in (known.values() if task is None else [task_of(known, task)])]
    if not any(is_tested_on(pack, found) for pack in packs):
        others = ", ".join(dict.fromkeys(f"'{pack.task}' has {_told(pack.classes)}" for pack in packs))
        raise UserError(
            f"{data} has {_told(found.classes)}, which no task has: {others}. Give the set of a task with --data."
        )
    return found


def is_tested_on(pack: TaskPack, data: TaskData) -> bool:
    """Whether a task has the classes of a set, in its order."""
    return pack.classes == tuple(data.classes)


def _told(classes: Sequence[str]) -> str:
    """A number of classes and their first and last name, for a person: some sets have hundreds."""
    return f"{len(classes)} classes, '{classes[0]}' to '{classes[-1]}'"


def accuracies_on(
    artifact: Path,
    data: TaskData,
    threads: int | None = None,
    board: BoardAddress | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    exact: Bundle | None = None,
) -> dict[str, Accuracy]:
    """The accuracy of those tasks of an artifact that have the classes of a set; see `accuracy_on`.

    Raises:
        UserError: as `open_session` and `accuracy_on`.
    """
    found = {}
    with open_session(artifact, board, threads) as session:
        bundle = load_bundle(artifact)
        for task in [task for task, pack in bundle.packs.items() if is_tested_on(pack, data)]:
            session.switch(task)
            found[task] = accuracy_on(session, bundle, data, on_step, exact)
    return found


@torch.inference_mode()
def accuracy_on(
    session: AnySession,
    bundle: Bundle,
    data: TaskData,
    on_step: Callable[[str], None] = lambda step: None,
    exact: Bundle | None = None,
) -> Accuracy:
    """The accuracy of the session's current task.

    Args:
        session: the compiled task.
        bundle: has the task and its backbone.
        data: a set that the task is tested on (`is_tested_on`).
        on_step: called after each batch with what is done.
        exact: over the backbone in float32, where the bundle's is rounded (`exact_bundle`).

    Raises:
        UserError: an image cannot be read, or the device fails.
    """
    pack = bundle.packs[session.task]
    references, done = [task_module(one, pack) for one in (bundle, exact) if one is not None], 0
    right = np.zeros(1 + len(references), np.int64)
    for batch, labels in test_batches(data.test, pack.preprocessing, _BATCH):
        images = batch.contiguous()
        found = [session.run_all(images.numpy()), *(reference(images).numpy() for reference in references)]
        right += [int(np.sum(logits.argmax(1) == labels.numpy())) for logits in found]
        done += len(labels)
        on_step(f"test {pack.task}: {done} of {len(data.test)} images")
    compiled, pytorch, *known = (float(one) for one in right)
    return Accuracy(
        images=done,
        compiled=compiled / done,
        pytorch=pytorch / done,
        drop=100 * (pytorch - compiled) / done,
        rounding_drop=100 * (known[0] - pytorch) / done if known else None,
        whole_drop=100 * (known[0] - compiled) / done if known else None,
    )
