"""From an image to the network's input: as ever for ordinary photographs, in little memory for a line of pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ksm_hw.errors import UserError
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.masks.preprocessing import Interpolation, Preprocessing, preprocess, resize

PREPROCESSING = Preprocessing(32, 37, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def scaled_whole(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The formula: scale the shorter side, crop the middle, normalise."""
    factor = preprocessing.resize_to / min(image.size)
    size = tuple(max(preprocessing.resize_to, round(side * factor)) for side in image.size)
    method = Image.Resampling.BICUBIC if preprocessing.interpolation == "bicubic" else Image.Resampling.BILINEAR
    image, side = image.resize(size, method), preprocessing.image_size
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image)[top : top + side, left : left + side].astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(numbers, np.float32) for numbers in (preprocessing.mean, preprocessing.std))
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(512, 512), (600, 401), (101, 640), (640, 10), (19, 23), (64, 1)])
def test_ordinary_photographs_are_scaled_whole(
    size: tuple[int, int], interpolation: Interpolation, photographs: Path
) -> None:
    preprocessing = dataclasses.replace(PREPROCESSING, interpolation=interpolation)
    for path in sorted(photographs.iterdir()):
        image = read_image(path).resize(size)
        np.testing.assert_array_equal(preprocess(image, preprocessing), scaled_whole(image, preprocessing))


@pytest.mark.parametrize(("width", "length"), [(1, 60000), (3, 40000)])
@pytest.mark.parametrize("transpose", [False, True])
def test_of_a_very_long_image_the_middle_is_scaled(width: int, length: int, transpose: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (length, width, 3), np.uint8)
    middle = noise[length // 2 - 21 : length // 2 + 21]

    def image(pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(pixels.swapaxes(0, 1) if transpose else pixels))

    assert max(resize(image(noise), 37, "bilinear").size) <= 37 * 65
    np.testing.assert_array_equal(preprocess(image(noise), PREPROCESSING), preprocess(image(middle), PREPROCESSING))


def test_batches_are_of_the_files_that_can_be_read(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    files = sorted(photographs.iterdir())
    failures: dict[Path, UserError] = {}
    given = [files[0], tmp_path / "text.png", files[1], files[2]]
    batches = list(read_batches(iter(given), PREPROCESSING, 2, failures.__setitem__))
    assert [names for names, _ in batches] == [files[:2], files[2:]] and list(failures) == [given[1]]
    expected = np.stack([preprocess(read_image(file), PREPROCESSING) for file in files])
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in batches]), expected)
    with pytest.raises(UserError, match=r"text\.png"):
        list(read_batches(given, PREPROCESSING, 2))
