"""From image files to the most probable classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ksm_hw.errors import UserError
from ksm_hw.masks.preprocessing import preprocess_batch, read_image
from ksm_hw.runtime.any_session import AnySession


@dataclass(frozen=True)
class Classification:
    """The most probable classes of an image, most probable first: (name, probability in 0…1)."""

    image: str
    task: str
    classes: tuple[tuple[str, float], ...]


def classify(session: AnySession, images: list[Path], task: str | None = None, top: int = 5) -> list[Classification]:
    """Classifies images with a task of an open session.

    Raises:
        UserError: the task does not exist or is not given, or an image does not decode.
    """
    if task is None and len(session.tasks) > 1:
        raise UserError(f"The artifact holds several tasks; give one with --task: {', '.join(session.tasks)}.")
    session.switch(task or session.task)
    pack = session.packs[session.task]
    batch = preprocess_batch([read_image(path) for path in images], pack.preprocessing)
    results = []
    for path, logits in zip(images, session.run_all(batch), strict=True):
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        classes = tuple((pack.classes[index], float(probabilities[index])) for index in best)
        results.append(Classification(str(path), pack.task, classes))
    return results
