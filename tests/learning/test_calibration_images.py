"""Which images a task is calibrated on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ksm_hw.learning.calibration_images import calibration_batches
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.quantising.observers import CORRECTED_BY

SAME = Preprocessing(32, 32, "bilinear", (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("inside", ["train", "."])
@pytest.mark.parametrize("count", [250, 300])
def test_biases_are_corrected_by_images_of_all_classes_evenly(tmp_path: Path, inside: str, count: int) -> None:
    """A folder lies class by class; each class has a grey of its own here."""
    for number, name in enumerate("abc"):
        folder = tmp_path / inside / name
        folder.mkdir(parents=True)
        for image in range(count // 3 + 1):
            Image.new("L", (32, 32), 100 * number).save(folder / f"{image}.png")
        if inside == "train":
            (tmp_path / "test" / name).mkdir(parents=True)
            Image.new("L", (32, 32)).save(tmp_path / "test" / name / "0.png")
    images = np.concatenate(list(calibration_batches(str(tmp_path), SAME, count)))
    assert len(images) == count
    _, of_class = np.unique(images[:CORRECTED_BY, 0, 0, 0], return_counts=True)
    assert len(of_class) == 3 and of_class.min() >= CORRECTED_BY // 3 - 2
