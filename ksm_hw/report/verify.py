"""Proving that a compiled model equals the PyTorch one, on real images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images
from ksm_hw.masks.preprocessing import image_files, preprocess_batch, read_image
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module

_log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # Of the relative error of the logits, in float32.


@dataclass(frozen=True)
class Verification:
    """How far the compiled model of a task is from PyTorch's.

    Attributes:
        task: its name.
        images: how many were compared.
        absolute_error: largest |compiled - PyTorch| of a logit.
        relative_error: that, by the largest |PyTorch| logit of the same image; the worst image.
        agreement: share in 0…1 of the images with the same top class.
        passed: whether the relative error is within the tolerance.
    """

    task: str
    images: int
    absolute_error: float
    relative_error: float
    agreement: float
    passed: bool


def verify(
    artifact: Path,
    tasks: list[str] | None = None,
    images: Path | None = None,
    tolerance: float = TOLERANCE,
    on_task: Callable[[Verification], None] = lambda result: None,
    threads: int | None = None,
    board: BoardAddress | None = None,
) -> list[Verification]:
    """Compares every task of an artifact with the PyTorch network of its own backbone and task pack.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        tasks: names; all without it.
        images: a folder of images or one file; without it the artifact's samples of each task.
        tolerance: of the relative error.
        on_task: called after each task.
        threads: of the compiled model; without it as many as the target has cores.
        board: where the compiled model runs; on this machine without it. PyTorch always runs here.

    Raises:
        UserError: the artifact, a task or the images are missing or damaged, or the board is busy or gone.
    """
    results = []
    with open_session(artifact, board, threads) as session:
        bundle = load_bundle(artifact)
        for task in tasks or session.tasks:
            session.switch(task)
            pack = session.packs[task]
            paths = _images(bundle, task, images)
            _log.info("task %s is compared on %d images, %s and on", task, len(paths), paths[0])
            batch = preprocess_batch([read_image(path) for path in paths], pack.preprocessing)
            compiled = session.run_all(batch)
            results.append(_compare(task, compiled, _reference(bundle, pack, batch), tolerance))
            on_task(results[-1])
    return results


def _images(bundle: Bundle, task: str, images: Path | None) -> list[Path]:
    if images is None:
        return sample_images(bundle, task)
    return [images] if images.is_file() else image_files(images)


@torch.inference_mode()
def _reference(bundle: Bundle, pack: TaskPack, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = task_module(bundle, pack)(torch.from_numpy(batch)).numpy()
    return logits


def _compare(
    task: str, compiled: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], tolerance: float
) -> Verification:
    error = np.abs(compiled - reference).max(axis=1)
    relative = error / np.maximum(np.abs(reference).max(axis=1), np.finfo(np.float32).tiny)
    worst = float(relative.max())
    return Verification(
        task=task,
        images=len(reference),
        absolute_error=float(error.max()),
        relative_error=worst,
        agreement=float((compiled.argmax(1) == reference.argmax(1)).mean()),
        # Not `worst > tolerance`: an error that is not a number must fail.
        passed=bool(worst <= tolerance),
    )
