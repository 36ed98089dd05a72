"""Photographs to quantise by, and others to judge int8 on: crops of those that scikit-image and scikit-learn carry."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
import sklearn.datasets
import torch
from PIL import Image

from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.preprocessing import Preprocessing, preprocess_batch
from ksm_hw.models.task_module import task_module

# No photograph is in both: an engine is judged on what its ranges were not chosen by.
CALIBRATED_ON = ("astronaut", "camera", "coffee", "grass", "moon", "rocket", "china")
JUDGED_ON = ("chelsea", "brick", "coins", "gravel", "hubble_deep_field", "retina", "flower")
CROPS = 100  # Of either; as many as ksm-hw corrects biases by, and NNCF and ONNX Runtime advise hundreds.
SMALLEST = 0.4  # Side of a crop, by the shorter side of its photograph.


def convert(folder: Path) -> None:
    """Writes `calibration.npy` and `judged.npy`, float32 [100, 3, H, W], and `judged_logits.npy`, those of PyTorch."""
    bundle = load_bundle(folder.parent / "bundle")
    pack = bundle.packs[folder.name]
    np.save(folder / "calibration.npy", crops(CALIBRATED_ON, pack.preprocessing))
    judged = crops(JUDGED_ON, pack.preprocessing)
    module = task_module(bundle, pack)
    with torch.inference_mode():
        logits = np.concatenate([module(torch.from_numpy(judged[at : at + 1])).numpy() for at in range(len(judged))])
    np.save(folder / "judged.npy", judged)
    np.save(folder / "judged_logits.npy", logits)


def crops(names: Sequence[str], preprocessing: Preprocessing, count: int = CROPS) -> npt.NDArray[np.float32]:
    """Square crops of photographs in turn, of random sizes and places, every other one mirrored; the same always."""
    photographs = [photograph(name) for name in names]
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        image = photographs[number % len(photographs)]
        side = round(min(image.size) * generator.uniform(SMALLEST, 1))
        left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
        crop = image.crop((left, top, left + side, top + side))
        found.append(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop)
    return preprocess_batch(found, preprocessing)


def photograph(name: str) -> Image.Image:
    """One of either package, in RGB."""
    if name in ("china", "flower"):
        return Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
