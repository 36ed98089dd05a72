"""Batches of images for learning: augmented for training, as the task will see them for testing."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import psutil
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from ksm_hw.learning.datasets import ImageSplit
from ksm_hw.masks.preprocessing import Interpolation, Preprocessing, cropped, resize

_CROP_MARGIN = 9 / 8  # Training crops are cut at random from an image that is larger by this factor.
# Of scaled images of a split that are kept; those beyond are decoded in each epoch. More where there is much memory.
_KEPT_BYTES = 2**30
_KEPT_SHARE = 1 / 32  # Of the memory that is free, for several tasks may be learned beside each other.

CPU = torch.device("cpu")


class KeptImages:
    """A split whose images are decoded and scaled to one length of the shorter side once, and kept.

    Scaled again to that length an image stays what it is, so that batches are the same bit for bit.
    """

    def __init__(self, split: ImageSplit, side: int, interpolation: Interpolation) -> None:
        self.split, self.side, self.interpolation = split, side, interpolation
        self._kept: dict[int, tuple[Image.Image, int]] = {}
        self._room = max(_KEPT_BYTES, round(_KEPT_SHARE * psutil.virtual_memory().available))

    @property
    def labels(self) -> Sequence[int]:
        """Class of each image, in order."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index in self._kept:
            return self._kept[index]
        image, label = self.split[index]
        image = resize(image, self.side, self.interpolation)
        if (more := 3 * image.width * image.height) <= self._room:
            self._kept[index] = image, label
            self._room -= more
        return image, label


def kept_for_training(split: ImageSplit, preprocessing: Preprocessing) -> KeptImages:
    """The split with the images as crops for training are cut from."""
    return KeptImages(split, _training_side(preprocessing), preprocessing.interpolation)


def kept_for_testing(split: ImageSplit, preprocessing: Preprocessing) -> KeptImages:
    """The split with the images as the task's own crops are cut from."""
    return KeptImages(split, preprocessing.resize_to, preprocessing.interpolation)


def _training_side(preprocessing: Preprocessing) -> int:
    return round(preprocessing.resize_to * _CROP_MARGIN)


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """The images of a split as pixels of the network's input, uint8 [H, W, 3].

    What is random about image `i` depends on the seed, the epoch and `i` alone: a run that was stopped and resumed sees
    the same images as one that was not, with any number of loader processes.
    """

    def __init__(self, split: ImageSplit, preprocessing: Preprocessing, seed: tuple[int, int] | None, flip: bool):
        self.split, self.preprocessing, self.seed, self.flip = split, preprocessing, seed, flip

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.split[index]
        if self.seed is None:
            pixels = cropped(image, self.preprocessing)
        else:
            pixels = _augment(image, self.preprocessing, np.random.default_rng((*self.seed, index)), self.flip)
        return torch.from_numpy(pixels.copy()), label  # Pillow's are read-only.


def _augment(
    image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator, flip: bool
) -> npt.NDArray[np.uint8]:
    image = resize(image, _training_side(preprocessing), preprocessing.interpolation)
    size = preprocessing.image_size
    left = int(generator.integers(image.width - size + 1))
    top = int(generator.integers(image.height - size + 1))
    image = image.crop((left, top, left + size, top + size))
    if flip and generator.random() < 0.5:
        image = ImageOps.mirror(image)
    return np.asarray(image)


def _normalised(pixels: torch.Tensor, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Pixels uint8 [N, H, W, 3] as float32 [N, 3, H, W], channels last, on a device; on a CPU what `normalise` gives.

    Bytes go to the device, a quarter of the floats that they become there.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device) for values in (preprocessing.mean, preprocessing.std)
    )
    numbers = pixels.to(device).to(torch.float32)
    return ((numbers / 255 - mean) / std).permute(0, 3, 1, 2)


def training_batches(
    split: ImageSplit,
    preprocessing: Preprocessing,
    batch_size: int,
    seed: tuple[int, int],
    flip: bool,
    device: torch.device = CPU,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of shuffled, augmented batches: float32 [N, 3, H, W] in memory channels last, and int64 [N].

    Args:
        split: the training images.
        preprocessing: of the task.
        batch_size: images a batch; a last batch of one is left out, for BatchNorm has no variance over it.
        seed: (seed, epoch).
        flip: whether half of the images are mirrored.
        device: where the batches are.
    """
    images = _Images(split, preprocessing, seed, flip)
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    for pixels, labels in DataLoader(images, batch_size, sampler=order):
        if len(labels) > 1:
            yield _normalised(pixels, preprocessing, device), labels.to(device)


def test_batches(
    split: ImageSplit, preprocessing: Preprocessing, batch_size: int, device: torch.device = CPU
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All images in order, preprocessed as the task will see them, as `training_batches` gives them."""
    for pixels, labels in DataLoader(_Images(split, preprocessing, None, False), batch_size):
        yield _normalised(pixels, preprocessing, device), labels.to(device)
