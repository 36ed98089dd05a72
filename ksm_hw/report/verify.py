"""Proving that a compiled model equals the PyTorch one, on real images.

The truth is PyTorch in float64. PyTorch in float32 has an error of its own, for most networks near 1e-6; for an
ill-conditioned one it grows (EfficientNet-V2 with random weights: to half of the largest logit), and no float32 model
can be nearer. There the compiled model passes with at most 4 times PyTorch's error, and the result says so. PyTorch's
float32 runs only for images whose logits are past the tolerance, so a verification costs one run, in float64.

An int8 artifact is compared with the integer model of its tasks instead (`verify_integers.py`), bit for bit.

Both are over the artifact's own backbone. Where that is rounded, what this costs is measured apart (`rounding.py`).
"""

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.errors import UserError
from ksm_hw.images.finding import image_files
from ksm_hw.images.stream import OnFailure, raise_failure
from ksm_hw.learning.datasets import TaskData
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.models.task_module import task_module
from ksm_hw.report.accuracy import Accuracy, accuracy_on, is_tested_on
from ksm_hw.report.rounding import Rounding, exact_bundle, rounding_of
from ksm_hw.report.verify_integers import IntegerCheck, TensorCheck, first_difference
from ksm_hw.runtime.any_session import AnySession

_log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # Of the relative error of the logits, in float32.
_BATCH = 8  # Images that are compared at once; PyTorch holds what lies between the layers of all of them.
_ALLOWANCE = 4  # Times PyTorch's own float32 error, for networks where that is past the default tolerance.

Logits = npt.NDArray[np.floating[Any]]
Errors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verification:
    """How far the compiled model of a task is from PyTorch's in float64; of int8 from the integer model.

    Attributes:
        task: its name.
        images: how many were compared.
        absolute_error: largest |compiled - PyTorch| of a logit.
        relative_error: that, by the largest |PyTorch| logit of the same image; the worst image.
        float32_error: the same of PyTorch in float32, of the images past the tolerance; None where there are none.
        ill_conditioned: whether the compiled model is past the tolerance, but not past what float32 can do here.
        agreement: share in 0…1 of the images with the same top class as PyTorch's.
        passed: whether the relative error is within the tolerance, or the network ill-conditioned; of int8 whether
            every tensor is the integer model's, bit for bit.
        tensors: of int8, each tensor in the order of computation.
        first_difference: of int8, the first tensor that is not the integer model's; None where all are.
        accuracy: on a test set, where one was given.
        rounding: what the rounding of the backbone changes; None where it is not rounded, or its float32 is not known.
    """

    task: str
    images: int
    absolute_error: float
    relative_error: float
    float32_error: float | None
    ill_conditioned: bool
    agreement: float
    passed: bool
    tensors: tuple[TensorCheck, ...] = ()
    first_difference: str | None = None
    accuracy: Accuracy | None = None
    rounding: Rounding | None = None


def verify(
    artifact: Path,
    tasks: list[str] | None = None,
    images: Path | None = None,
    tolerance: float = TOLERANCE,
    on_task: Callable[[Verification], None] = lambda result: None,
    threads: int | None = None,
    board: BoardAddress | None = None,
    on_failure: OnFailure = raise_failure,
    data: TaskData | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    source: Path | None = None,
) -> list[Verification]:
    """Compares every task of an artifact with the PyTorch network, in float64, of its own backbone and task pack.

    One of int8 is compared with the integer model.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        tasks: names; all without it.
        images: a folder of images or one file; without it the artifact's samples of each task.
        tolerance: of the relative error.
        on_task: called after each task.
        threads: of the compiled model; without it as many as the target has cores.
        board: where the compiled model runs; on this machine without it. PyTorch always runs here.
        on_failure: called with an image that cannot be read, which is left out. Without it the error is raised.
        data: a set, on whose test images the accuracy of the tasks that have its classes is measured as well
            (`find_test_set`).
        on_step: called with what is being done.
        source: the bundle that the artifact was compiled from, for what the rounding of its backbone costs; not needed
            where a package has these weights.

    Raises:
        UserError: the artifact, a task or the images are missing or damaged, or the board is busy or gone.
    """
    results = []
    with open_session(artifact, board, threads) as session:
        bundle = load_bundle(artifact)
        exact = exact_bundle(bundle, source)
        given = None if images is None else _given(images)
        for task in tasks or session.tasks:
            session.switch(task)
            paths = sample_images(bundle, task) if given is None else given
            _log.info("task %s is compared on %d images, %s and on", task, len(paths), paths[0])
            on_step(f"compare {task} on {len(paths)} images")
            if session.manifest.precision == "int8":
                result = _verify_integers(session, bundle, paths, on_failure)
            else:
                result = _verify_task(session, bundle, paths, tolerance, on_failure)
            if data is not None and is_tested_on(bundle.packs[task], data):
                found = accuracy_on(session, bundle, data, on_step, exact)
                result = dataclasses.replace(result, accuracy=found)
            if exact is not None:
                on_step(f"what rounding changes of {task}")
                # What cannot be read was told of when the task was compared.
                rounding = rounding_of(bundle, exact, bundle.packs[task], paths, lambda path, error: None)
                result = dataclasses.replace(result, rounding=rounding)
            results.append(result)
            on_task(results[-1])
    return results


def _given(images: Path) -> list[Path]:
    if not os.path.exists(images):  # As Path.exists, but false too for a name that is too long.
        raise UserError(f"No images in {images}: there is no such file or folder. Check the path.")
    return image_files([images])


def _verify_task(
    session: AnySession, bundle: Bundle, files: list[Path], tolerance: float, on_failure: OnFailure
) -> Verification:
    """The session's current task, batch by batch: of all images only the logits are kept."""
    pack = bundle.packs[session.task]
    network = task_module(bundle, pack)
    all_compiled, all_exact, float32_errors = [], [], []
    for _, batch in read_batches(files, pack.preprocessing, _BATCH, on_failure):
        compiled, exact = session.run_all(batch), _logits(network, batch, torch.float64)
        past = _relative_errors(compiled, exact) > tolerance
        all_compiled.append(compiled)
        all_exact.append(exact)
        float32_errors.append(_float32_errors(network, batch, exact, past))
    if not all_exact:
        raise _none_read(files)
    return _compare(
        pack.task, np.concatenate(all_compiled), np.concatenate(all_exact), tolerance, np.concatenate(float32_errors)
    )


def _none_read(files: list[Path]) -> UserError:
    return UserError(f"Of {len(files)} images none can be read. Give others with --images.")


def _verify_integers(session: AnySession, bundle: Bundle, files: list[Path], on_failure: OnFailure) -> Verification:
    """The session's current task, of int8, batch by batch."""
    pack, check = bundle.packs[session.task], IntegerCheck(session, bundle)
    batches = [check.add(batch) for _, batch in read_batches(files, pack.preprocessing, _BATCH, on_failure)]
    if not batches:
        raise _none_read(files)
    compiled, stated, real = (
        np.concatenate([getattr(one, kind) for one in batches]) for kind in ("compiled", "stated", "real")
    )
    tensors = check.tensors()
    result = _compare(pack.task, compiled, stated, tolerance=0)
    return dataclasses.replace(
        result,
        agreement=float((compiled.argmax(1) == real.argmax(1)).mean()),
        passed=result.passed and first_difference(tensors) is None,
        tensors=tensors,
        first_difference=first_difference(tensors),
    )


@torch.inference_mode()
def _logits(network: nn.Module, batch: npt.NDArray[np.float32], dtype: torch.dtype) -> Logits:
    """Logits [N, classes] of the network in a type; it stays in that type, and float32 comes back as it was."""
    logits: Logits = network.to(dtype)(torch.from_numpy(batch).to(dtype)).numpy()
    return logits


def _float32_errors(
    network: nn.Module, batch: npt.NDArray[np.float32], exact: Logits, asked: npt.NDArray[np.bool_]
) -> Errors:
    """The relative errors of PyTorch in float32, of the images that are asked for alone."""
    if not asked.any():
        return np.empty(0)
    return _relative_errors(_logits(network, batch[asked], torch.float32), exact[asked])


def _relative_errors(logits: Logits, exact: Logits) -> Errors:
    """Of each image the largest error of a logit, by the largest logit; infinite where one is not a number."""
    with np.errstate(invalid="ignore"):
        errors: Errors = np.abs(logits - exact).max(axis=1)
        errors = errors / np.maximum(np.abs(exact).max(axis=1), np.finfo(np.float32).tiny)
    return np.where(np.isnan(errors), np.inf, errors)


def _compare(
    task: str, compiled: Logits, exact: Logits, tolerance: float, float32_errors: Sequence[float] | Errors = ()
) -> Verification:
    """The verdict over all images.

    Args:
        task: its name.
        compiled, exact: logits [N, classes] of the compiled model, and of PyTorch in float64.
        tolerance: of the relative error.
        float32_errors: relative errors of PyTorch in float32, of the images past the tolerance.
    """
    worst = float(_relative_errors(compiled, exact).max())
    float32_error = max(map(float, float32_errors), default=None)
    # By the default tolerance, whatever was asked for: a network is not ill-conditioned because somebody asks for 1e-9.
    allowed = 0.0 if float32_error is None or not math.isfinite(float32_error) else _ALLOWANCE * float32_error
    ill_conditioned = tolerance < worst <= allowed and allowed > TOLERANCE
    return Verification(
        task=task,
        images=len(exact),
        absolute_error=float(np.abs(compiled - exact).max()),
        relative_error=worst,
        float32_error=float32_error,
        ill_conditioned=ill_conditioned,
        agreement=float((compiled.argmax(1) == exact.argmax(1)).mean()),
        passed=worst <= tolerance or ill_conditioned,
    )
