"""The accuracy of a compiled task on a test set, beside that of PyTorch in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.runtime.any_session import AnySession

_BATCH = 50


@dataclass(frozen=True)
class Accuracy:
    """Of a task on a test set.

    Attributes:
        images: of the test set.
        compiled, pytorch: share in 0…1 whose top class is right, in the compiled model and in PyTorch in float32.
        drop: points that the compiled model loses; below 0 where it gains.
    """

    images: int
    compiled: float
    pytorch: float
    drop: float


def accuracies_on(
    artifact: Path,
    data: str,
    threads: int | None = None,
    board: BoardAddress | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Accuracy]:
    """The accuracy of those tasks of an artifact that have the classes of a set; see `accuracy_on`.

    Raises:
        UserError: as `open_session` and `accuracy_on`, or no task has these classes.
    """
    classes, found = tuple(load_task_data(data).classes), {}
    with open_session(artifact, board, threads) as session:
        bundle = load_bundle(artifact)
        for task, pack in bundle.packs.items():
            if pack.classes == classes:
                session.switch(task)
                found[task] = accuracy_on(session, bundle, data, on_step)
    if not found:
        raise UserError(f"No task of {artifact} has the classes of {data}: {', '.join(classes)}. Give another --data.")
    return found


@torch.inference_mode()
def accuracy_on(
    session: AnySession, bundle: Bundle, data: str, on_step: Callable[[str], None] = lambda step: None
) -> Accuracy:
    """The accuracy of the session's current task.

    Args:
        session: the compiled task.
        bundle: has the task and its backbone.
        data: a registered set's name, or a folder with `train/` and `test/`; its test images count.
        on_step: called after each batch with what is done.

    Raises:
        UserError: there is no such set or folder, its classes are not the task's, or the device fails.
    """
    pack, found = session.packs[session.task], load_task_data(data)
    if tuple(found.classes) != pack.classes:
        raise UserError(
            f"{data} has the classes {', '.join(found.classes)}, and task '{pack.task}' {', '.join(pack.classes)}. "
            "Give the task's own set with --data, and choose the task with --task."
        )
    reference, done = task_module(bundle, pack), 0
    right = np.zeros(2, np.int64)
    for images, labels in test_batches(found.test, pack.preprocessing, _BATCH):
        for place, logits in enumerate((session.run_all(images.numpy()), reference(images).numpy())):
            right[place] += int(np.sum(logits.argmax(1) == labels.numpy()))
        done += len(labels)
        on_step(f"test {pack.task}: {done} of {len(found.test)} images")
    compiled, pytorch = (float(one) / done for one in right)
    return Accuracy(done, compiled, pytorch, 100 * float(right[1] - right[0]) / done)
