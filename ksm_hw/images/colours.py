"""From the modes that Pillow decodes images into to RGB of a byte a colour."""

from typing import Any

import numpy as np
from PIL import Image, ImageFile

# What Pillow calls a PNG's pixels before they are decoded, and by what it then scales or cuts them to a byte.
_PNG_SCALES = {"L;2": (85, 0), "L;4": (17, 0), "RGB;16B": (1, 8)}
_STRIP = 64  # Rows that are laid over white at once.
_NETPBM_OR_PNG = ("PNG", "PPM")  # Their mode "I" holds numbers of 16 bits.


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; transparent pixels are laid over white.

    Of 16 bits the upper 8 count, as where Pillow reads 16 bits of each colour; numbers with a point are 0 for black to
    1 for white.

    Raises:
        ValueError: it is not said which number is white, or the colours have no RGB.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _NETPBM_OR_PNG):
        image = _from_16_bits(image)
    elif image.mode == "I":
        raise ValueError("its pixels are integers of 32 bits, of which none is known to be white; save it with 8 or 16")
    elif image.mode == "F":
        image = _from_floats(image)
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """In strips: whole, it would be in memory five times over."""
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Before a PNG is loaded: its transparent colour, as the file has it, becomes one of those that Pillow gives."""
    colour = image.info.get("transparency")
    arguments = image.tile[0][3] if image.format == "PNG" and len(image.tile) == 1 else None
    if colour is not None and isinstance(arguments, str) and arguments in _PNG_SCALES:
        factor, shift = _PNG_SCALES[arguments]
        scaled = [number * factor >> shift for number in (colour if isinstance(colour, tuple) else (colour,))]
        image.info["transparency"] = tuple(scaled) if isinstance(colour, tuple) else scaled[0]


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray((values >> _bits(image) - 8).clip(0, 255).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _bits(image: Image.Image) -> int:
    """Of a pixel; TIFF has it in a tag (258, BitsPerSample), and 12 is another one that Pillow knows."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(258, (16,))[0])


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"its pixels are numbers from {values.min():g} to {values.max():g}; 0 is black and 1 white")
    return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
