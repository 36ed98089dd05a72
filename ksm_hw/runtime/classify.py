"""From image files to the most probable classes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.images.stream import OnFailure, raise_failure
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.masks.task_pack import TaskDescription
from ksm_hw.runtime.any_session import AnySession


@dataclass(frozen=True)
class Classification:
    """The most probable classes of an image, most probable first: (name, probability in 0…1)."""

    image: str
    task: str
    classes: tuple[tuple[str, float], ...]


def classify(
    session: AnySession,
    images: Iterable[Path],
    task: str | None = None,
    top: int = 5,
    on_failure: OnFailure = raise_failure,
) -> Iterator[Classification]:
    """Classifies images with a task of an open session, one batch after the other: each result when it is there.

    Args:
        session: whose current task it becomes.
        images: files; a few are read ahead.
        task: its name; the artifact's only one without it.
        top: classes of each result.
        on_failure: called with a file that cannot be read, or whose logits are not finite; it is left out. Without it
            the error is raised.

    Raises:
        UserError: the task does not exist or is not given, an image cannot be read, or its logits are not
            finite.
    """
    if task is None and len(session.tasks) > 1:
        raise UserError(f"The artifact holds several tasks; give one with --task: {', '.join(session.tasks)}.")
    session.switch(session.task if task is None else task)
    description = session.descriptions[session.task]
    for files, batch in read_batches(images, description.preprocessing, session.manifest.input_shape[0], on_failure):
        for file, logits in zip(files, session.run_all(batch), strict=True):
            if np.isfinite(logits).all():
                yield _classification(file, logits, description, top)
            else:
                on_failure(file, _overflow(file, description.task))


def _overflow(file: Path, task: str) -> UserError:
    return UserError(
        f"{file}: task '{task}' gives logits that are not finite (NaN or infinite), and so no class. Its network "
        "overflows for this image; `ksm-hw verify` says whether PyTorch's does too."
    )


def _classification(
    file: Path, logits: npt.NDArray[np.float32], description: TaskDescription, top: int
) -> Classification:
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    classes = tuple((description.classes[index], float(probabilities[index])) for index in best)
    return Classification(str(file), description.task, classes)
