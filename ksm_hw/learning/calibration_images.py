"""Images to calibrate a task on: some of its training images, or those of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.images.finding import image_files
from ksm_hw.learning.datasets import REGISTERED, ImageSplit, load_task_data
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.masks.preprocessing import Preprocessing, preprocess_batch
from ksm_hw.quantising.observers import CORRECTED_BY, IMAGES

_BATCH = 25  # Images at once, between the layers of which all tensors of the network are held.

Batches = Iterator[npt.NDArray[np.float32]]


def calibration_batches(data: str, preprocessing: Preprocessing, count: int | None = None) -> Batches:
    """Images of a registered set's or a folder's `train/`, or of a folder without one, chosen with seed 0.

    Args:
        data: name of a set, or path of a folder.
        preprocessing: of the task.
        count: how many images; without it `IMAGES`, or all where there are fewer.

    Returns:
        Batches, float32 [N, 3, H, W]. Images of a folder lie class by class; the first `CORRECTED_BY`, by which biases
        are corrected, are spread evenly over all of them.

    Raises:
        UserError: there are fewer images, no such folder or set, or an image cannot be read.
    """
    if data in REGISTERED or (Path(data) / "train").is_dir() or not os.path.exists(data):
        return split_batches(load_task_data(data).train, preprocessing, data, count)
    files = image_files([Path(data)])
    chosen = [files[index] for index in _chosen(len(files), data, count)]
    return (batch for _, batch in read_batches(chosen, preprocessing, _BATCH))


def split_batches(split: ImageSplit, preprocessing: Preprocessing, name: str, count: int | None = None) -> Batches:
    """The same, of the images of a split; `name` says in an error whose they are."""
    chosen = _chosen(len(split), name, count)
    return (
        preprocess_batch([split[index][0] for index in chosen[start : start + _BATCH]], preprocessing)
        for start in range(0, len(chosen), _BATCH)
    )


def _chosen(there_are: int, name: str, count: int | None) -> list[int]:
    count = min(IMAGES, there_are) if count is None else count
    if there_are < count:
        raise UserError(
            f"{name} has {there_are} images to calibrate on, and {count} were asked for. Give more, or --images "
            f"{max(there_are, 1)}."
        )
    chosen = sorted(np.random.default_rng(0).permutation(there_are)[:count].tolist())
    first = {step * count // CORRECTED_BY for step in range(CORRECTED_BY)}
    return [chosen[place] for place in sorted(range(count), key=lambda place: place not in first)]
