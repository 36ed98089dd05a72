"""Images and weights that learning is tried with, and learning that ends without calibration."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ksm_hw.learning.dataset_sources import ImagesInMemory
from ksm_hw.learning.datasets import TaskData
from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.network import NotQuantisable


def noise(seed: int, classes: int = 3) -> TaskData:
    """Noise around a grey that tells the class, 32×32 pixels."""
    generator = np.random.default_rng(seed)

    def split(count: int) -> ImagesInMemory:
        labels = [number % classes for number in range(count)]
        pixels = generator.integers(0, 60, (count, 32, 32, 3)) + 60 * np.array(labels).reshape(-1, 1, 1, 1)
        return ImagesInMemory(list(pixels.astype(np.uint8)), labels)

    names = tuple(f"grey {number}" for number in range(classes))
    return TaskData(f"noise {seed}", names, split(16), split(9), False, "made here", "none")


def save_pets(folder: Path) -> Path:
    """Writes a set of two classes with a training and a test image each."""
    for number, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (number * 60, 0, 0)).save(folder / name / "1.png")
    return folder


def saved_weights(bundle: Bundle, path: Path) -> Path:
    """A file with the backbone of a bundle, made where it is not there."""
    if not path.exists():
        torch.save({name: torch.from_numpy(np.array(array)) for name, array in bundle.tensors.items()}, path)
    return path


def refuse_to_calibrate(patch: pytest.MonkeyPatch) -> None:
    """Calibration would take most of the time."""

    def refuse(*_: object, **__: object) -> None:
        raise NotQuantisable

    patch.setattr("ksm_hw.learning.train.calibrate", refuse)
