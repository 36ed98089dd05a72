"""From an image file to an upright RGB image, with Pillow, so that a board needs no torch.

The largest image is Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, which `--max-pixels` sets.
"""

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image, ImageFile, ImageOps, JpegImagePlugin

from ksm_hw.errors import UserError
from ksm_hw.images.colours import as_rgb, scale_transparent_colour
from ksm_hw.images.finding import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)
_say_once = functools.cache(_log.warning)  # An image is read in every epoch, and for every task.

# Above so many pixels images are decoded one at a time, whatever the threads: each takes hundreds of megabytes.
_LARGE = 25_000_000
_one_large_image = threading.Lock()

# Pillow's names of what IMAGE_SUFFIXES stand for. It knows forty more, old decoders among them, and starts Ghostscript
# for a file that begins like PostScript, whatever its name.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_JPEG_REDUCTIONS = (2, 4, 8)  # What the decoder can divide width and height by.


def read_image(path: Path) -> Image.Image:
    """Reads an image file as RGB, upright as its EXIF says; transparent pixels are laid over white.

    Of an animation it is the first frame. A JPEG of more pixels than the limit is decoded at a half, a quarter or an
    eighth of its width and height, and that is said.

    Raises:
        UserError: the file cannot be read, is no image that Pillow can decode, or has too many pixels.
    """
    with _opened(path) as image:
        _fit_into_limit(image, path)
        return _decoded(image)


def check_image(path: Path) -> None:
    """Decodes an image file as quickly as shows whether `read_image` can.

    Raises:
        UserError: it cannot.
    """
    with _opened(path) as image:
        _fit_into_limit(image, path, say=False)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            # All of the file is read, and an eighth of it made.
            image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
        _decoded(image)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image whose header was read; whatever fails in here is the file's fault."""
    try:
        try:
            image = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError:
            # Refused for its size. A JPEG may be decoded at a smaller one.
            image = _as_jpeg(path) or Image.open(path, formats=_FORMATS)
        with image:
            yield image
    except FileNotFoundError as error:
        hint = " The pattern matched no file." if any(sign in str(path) for sign in "*?[") else ""
        raise UserError(f"No image at {path}.{hint} Check the path.") from error
    except MemoryError as error:
        raise UserError(f"Cannot decode {path}: there is too little memory. Scale the image down.") from error
    # Decoders raise whatever their parsing of a damaged file trips over: struct.error, IndexError, zlib.error and more.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"Cannot read {path}: {error.strerror}. Check the path and its permissions.") from error
        raise UserError(
            f"Cannot decode {path} as an image ({str(error) or type(error).__name__}). Expected one of "
            f"{', '.join(IMAGE_SUFFIXES)}{_limit_in_words()}; convert the file or leave it out."
        ) from error


def _limit_in_words() -> str:
    return "" if Image.MAX_IMAGE_PIXELS is None else f" of at most {Image.MAX_IMAGE_PIXELS} pixels (--max-pixels)"


def _as_jpeg(path: Path) -> ImageFile.ImageFile | None:
    try:
        return JpegImagePlugin.JpegImageFile(path)
    except SyntaxError:
        return None


def _fit_into_limit(image: ImageFile.ImageFile, path: Path, say: bool = True) -> None:
    """Has a JPEG that is too large decoded at a smaller scale."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if pixels == 0:
        raise ValueError("it has no pixels")
    if limit is None or pixels <= limit:
        return
    # A progressive one is decoded whole before it is scaled.
    reducible = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive")
    for by in _JPEG_REDUCTIONS if reducible else ():
        if -(-image.width // by) * -(-image.height // by) <= limit:
            size = image.size
            image.draft(image.mode, (size[0] // by, size[1] // by))
            if say:
                _say_once(
                    "%s has %d × %d pixels and is decoded at 1/%d of that; --max-pixels %d decodes it whole",
                    *(path, *size, by, pixels),
                )
            return
    raise ValueError(f"it has {image.width} × {image.height} pixels, which are too many")


def _decoded(image: ImageFile.ImageFile) -> Image.Image:
    scale_transparent_colour(image)
    with _one_large_image if image.width * image.height > _LARGE else nullcontext():
        image.load()
        _turn_upright(image)
        return as_rgb(image)


def _turn_upright(image: ImageFile.ImageFile) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # As of a damaged image: EXIF has a parser of its own.
        _log.info("the EXIF of an image is damaged (%s); it is taken to be upright", error)
