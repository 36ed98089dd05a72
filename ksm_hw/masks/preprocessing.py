"""From an image to the network's input, with Pillow and NumPy alone, so that a board needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

Interpolation = Literal["bilinear", "bicubic"]
# Of a network's input in pixels: a damaged file must not ask for more memory than any machine has.
Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Share = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]  # Below, float32 overflows, or is 0.

# Of an image that is longer than so many times its width, only the middle is scaled: the rest of a line of 1 × 60000
# pixels would become gigabytes, to be cropped away.
_LONGEST = 64


@dataclass(frozen=True)
class Preprocessing:
    """How a task turns an image into the input of the network.

    Attributes:
        image_size: height and width of the input in pixels.
        resize_to: length in pixels that the shorter side is scaled to, before the centre is cropped; no less than that.
        interpolation: how pixels are scaled.
        mean, std: red, green, blue of the normalisation (x - mean) / std, where x lies in 0…1.
    """

    image_size: Side
    resize_to: Side
    interpolation: Interpolation
    mean: tuple[Share, Share, Share]
    std: tuple[Spread, Spread, Spread]

    def __post_init__(self) -> None:
        if self.resize_to < self.image_size:
            raise ValueError(f"images of {self.resize_to} pixels cannot be cropped to {self.image_size}")


def resize(image: Image.Image, shorter_side: int, interpolation: Interpolation) -> Image.Image:
    """Scales the image so that its shorter side has the given length in pixels; of a very long one only the middle."""
    image = _middle(image)
    factor = shorter_side / min(image.size)
    width, height = (max(shorter_side, round(side * factor)) for side in image.size)
    return image.resize(
        (width, height), Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    )


def _middle(image: Image.Image) -> Image.Image:
    """The image without what lies beyond _LONGEST times its shorter side; equally much is cut at both ends."""
    longest = _LONGEST * min(image.size)
    left, top = (max(side - longest, 0) // 2 for side in image.size)
    if left == top == 0:
        return image
    return image.crop((left, top, image.width - left, image.height - top))


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """An RGB image as float32 [3, image_size, image_size]: scaled, cropped at the centre and normalised."""
    return normalise(cropped(image, preprocessing), preprocessing)


def cropped(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An RGB image as pixels uint8 [image_size, image_size, 3]: scaled and cropped at the centre."""
    image = resize(image, preprocessing.resize_to, preprocessing.interpolation)
    size = preprocessing.image_size
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def preprocess_batch(images: Sequence[Image.Image], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """RGB images as float32 [N, 3, image_size, image_size]."""
    return np.stack([preprocess(image, preprocessing) for image in images])


def normalise(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Pixels uint8 [H, W, 3] as float32 [3, H, W]: x/255, less the mean, by the standard deviation."""
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
