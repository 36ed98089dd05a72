"""From an image file to the network's input, with Pillow and NumPy alone, so that a board needs neither torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from ksm_hw.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]
# Of a network's input in pixels: a damaged file must not ask for more memory than any machine has.
Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Share = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Preprocessing:
    """How a task turns an image into the input of the network.

    Attributes:
        image_size: height and width of the input in pixels.
        resize_to: length in pixels that the shorter side is scaled to, before the centre is cropped.
        interpolation: how pixels are scaled.
        mean, std: red, green, blue of the normalisation (x - mean) / std, where x lies in 0…1.
    """

    image_size: Side
    resize_to: Side
    interpolation: Interpolation
    mean: tuple[Share, Share, Share]
    std: tuple[Spread, Spread, Spread]


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, in the order of their names.

    Raises:
        UserError: there are none.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"No images in {folder}. Expected files that end in {', '.join(IMAGE_SUFFIXES)}.")
    return found


def read_image(path: Path) -> Image.Image:
    """Reads an image file as RGB; transparent pixels are laid over white.

    Raises:
        UserError: the file is missing or is no image that Pillow can decode.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return as_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"No image at {path}. Check the path.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"Cannot decode {path} as an image ({error}). Expected one of {', '.join(IMAGE_SUFFIXES)} of at most "
            f"{Image.MAX_IMAGE_PIXELS} pixels; convert the file or leave it out."
        ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; transparent pixels are laid over white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize(image: Image.Image, shorter_side: int, interpolation: Interpolation) -> Image.Image:
    """Scales the image so that its shorter side has the given length in pixels."""
    factor = shorter_side / min(image.size)
    width, height = (max(shorter_side, round(side * factor)) for side in image.size)
    return image.resize(
        (width, height), Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    )


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """An RGB image as float32 [3, image_size, image_size]: scaled, cropped at the centre and normalised."""
    image = resize(image, preprocessing.resize_to, preprocessing.interpolation)
    size = preprocessing.image_size
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return normalise(np.asarray(image), preprocessing)


def preprocess_batch(images: Sequence[Image.Image], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """RGB images as float32 [N, 3, image_size, image_size]."""
    return np.stack([preprocess(image, preprocessing) for image in images])


def normalise(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Pixels uint8 [H, W, 3] as float32 [3, H, W]: x/255, less the mean, by the standard deviation."""
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
