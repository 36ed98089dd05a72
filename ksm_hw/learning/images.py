"""Batches of images for learning: augmented for training, as the task will see them for testing."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from ksm_hw.learning.datasets import ImageSplit
from ksm_hw.masks.preprocessing import Preprocessing, normalise, preprocess, resize

_CROP_MARGIN = 9 / 8  # Training crops are cut at random from an image that is larger by this factor.


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """The images of a split as inputs of the network.

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
            return torch.from_numpy(preprocess(image, self.preprocessing)), label
        generator = np.random.default_rng((*self.seed, index))
        return torch.from_numpy(_augment(image, self.preprocessing, generator, self.flip)), label


def _augment(
    image: Image.Image, preprocessing: Preprocessing, generator: np.random.Generator, flip: bool
) -> np.ndarray:
    image = resize(image, round(preprocessing.resize_to * _CROP_MARGIN), preprocessing.interpolation)
    size = preprocessing.image_size
    left = int(generator.integers(image.width - size + 1))
    top = int(generator.integers(image.height - size + 1))
    image = image.crop((left, top, left + size, top + size))
    if flip and generator.random() < 0.5:
        image = ImageOps.mirror(image)
    return normalise(np.asarray(image), preprocessing)


def training_batches(
    split: ImageSplit, preprocessing: Preprocessing, batch_size: int, seed: tuple[int, int], flip: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of shuffled, augmented batches: float32 [N, 3, H, W] and int64 [N].

    Args:
        split: the training images.
        preprocessing: of the task.
        batch_size: images a batch; a last batch of one is left out, for BatchNorm has no variance over it.
        seed: (seed, epoch).
        flip: whether half of the images are mirrored.
    """
    images = _Images(split, preprocessing, seed, flip)
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    for images_batch, labels in DataLoader(images, batch_size, sampler=order):
        if len(labels) > 1:
            yield images_batch, labels


def test_batches(
    split: ImageSplit, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All images in order, preprocessed as the task will see them: float32 [N, 3, H, W] and int64 [N]."""
    yield from DataLoader(_Images(split, preprocessing, None, False), batch_size)
