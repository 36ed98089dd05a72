"""Every kind of image file as the pixels that a person sees: EXIF, 16 bits, transparency, sizes, and damage."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from ksm_hw.errors import UserError
from ksm_hw.images.decoding import check_image, read_image

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path: Path, depth: int, colour: int, row: bytes, width: int, *more: bytes) -> Path:
    """A PNG of one row, of depths and with chunks that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b""))
    return path


def first_row(path: Path) -> list[list[int]]:
    return np.asarray(read_image(path))[0].tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
def test_a_photograph_is_upright(kind: str, orientation: int, photographs: Path, tmp_path: Path) -> None:
    upright = Image.open(photographs / "cat.png").convert("RGB").resize((48, 32))
    # What the camera stored: the inverse of what its orientation asks for.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "webp" else {"quality": 98, "subsampling": 0} if kind == "jpg" else {}
    image = upright if stored is None else upright.transpose(stored)
    found = read_image(saved(image, tmp_path / f"photo.{kind}", exif=exif, **options))
    assert found.size == upright.size
    difference = np.abs(np.asarray(found, int) - np.asarray(upright, int))
    assert difference.max() <= (20 if kind == "jpg" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_photograph_as_it_is_stored(tmp_path: Path) -> None:
    image = Image.fromarray(np.stack([RAMP] * 3, -1))
    for exif in b"Exif\0\0MM\0\x2a\0\0\0\xff\xff\xff", b"Exif\0\0II", b"\xff" * 40:
        path = saved(image, tmp_path / "photo.png", exif=exif)
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(image))


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_16_bits_of_grey_are_as_bright_as_8(kind: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / f"scan.{kind}")
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], RAMP)


def test_16_bits_of_each_colour(tmp_path: Path) -> None:
    row = struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1234, 0, 0xFF00)
    assert first_row(png(tmp_path / "a.png", 16, 2, row, 2)) == [[0, 0x80, 255], [0x12, 0, 255]]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent", "expected"),
    [
        (16, 0, struct.pack(">2H", 1000, 1001), struct.pack(">H", 1000), [255, 3]),
        (4, 0, bytes([0x28]), struct.pack(">H", 2), [255, 8 * 17]),
        (2, 0, bytes([0b10010000]), struct.pack(">H", 2), [255, 85]),
        (1, 0, bytes([0b10000000]), struct.pack(">H", 0), [255, 255]),
        (8, 0, bytes([9, 8]), struct.pack(">H", 9), [255, 8]),
        (16, 2, struct.pack(">6H", *[0x1212] * 3, *[0x3434] * 3), struct.pack(">3H", *[0x1212] * 3), [255, 0x34]),
    ],
)
def test_the_transparent_colour_of_a_png_is_white(
    depth: int, colour: int, row: bytes, transparent: bytes, expected: list[int], tmp_path: Path
) -> None:
    found = first_row(png(tmp_path / "a.png", depth, colour, row, 2, chunk(b"tRNS", transparent)))
    assert found == [[number] * 3 for number in expected]


def test_numbers_with_a_point_from_0_to_1(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.float32) / 255), tmp_path / "photo.tiff")
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (RAMP.astype(np.float32), "numbers from 0 to 255; 0 is black and 1 white"),
        (np.full((2, 2), np.nan, np.float32), "numbers from nan to nan"),
        (RAMP.astype(np.int32) * 1000, "integers of 32 bits"),
    ],
)
def test_pixels_of_which_none_is_known_to_be_white(pixels: np.ndarray, said: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(pixels), tmp_path / "measured.tiff")
    with pytest.raises(UserError, match=f"Cannot decode .*{said}"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes(mode: str, photographs: Path, tmp_path: Path) -> None:
    image = Image.open(photographs / "cat.png").convert("RGB").resize((32, 32))
    kept = (
        Image.merge("PA", (image.quantize(8), Image.new("L", (32, 32), 255))) if mode == "PA" else image.convert(mode)
    )
    path = saved(kept, tmp_path / "photo.tiff")
    # Opaque all of them, so Pillow's own conversion is what a person sees.
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(kept.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str, photographs: Path, tmp_path: Path) -> None:
    image = Image.open(photographs / "cat.png").convert("RGB").resize((50, 150))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = saved(image.quantize(32) if mode == "P" else image.convert(mode), tmp_path / "photo.png")
    with Image.open(path) as opened:
        rgba = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(expected))


def test_lab(photographs: Path, tmp_path: Path) -> None:
    image = Image.open(photographs / "cat.png").convert("RGB").resize((32, 32))
    found = read_image(saved(image.convert("LAB"), tmp_path / "photo.tiff"))
    assert np.abs(np.asarray(found, int) - np.asarray(image, int)).mean() < 3


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(frames[0], tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **(
        {"lossless": True} if kind == "webp" else {}))  # fmt: skip
    assert Image.open(path).n_frames == 3
    assert first_row(path)[0] == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_above_the_limit_is_decoded_smaller(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.open(photographs / "cat.png").convert("RGB").resize((320, 200))
    path = saved(image, tmp_path / "photo.jpg", quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 320 * 200)
    assert read_image(path).size == (320, 200) and not caplog.records
    for limit, by in (320 * 200 - 1, 2), (9000, 4), (1000, 8):  # Pillow itself refuses more than twice the limit.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        caplog.clear()
        found = read_image(path)
        assert found.size == (320 // by, 200 // by)
        assert f"decoded at 1/{by}" in caplog.text and "--max-pixels 64000" in caplog.text
        expected = np.asarray(image.reduce(by), float)
        assert np.abs(np.asarray(found) - expected).mean() < 6
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    with pytest.raises(UserError, match=r"320 × 200 pixels, which are too many.*at most 999 pixels"):
        read_image(path)


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.jpg", {"progressive": True}), ("a.webp", {})])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_images_above_the_limit(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Image.new("RGB", (40, 40)), tmp_path / name, **options)
    for limit in 1599, 700:  # Where Pillow warns, and where it refuses.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match=rf"at most {limit} pixels \(--max-pixels\)"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1600)
    assert read_image(path).size == (40, 40)


@pytest.mark.parametrize(
    "error",
    [struct.error, IndexError, OverflowError, EOFError, zlib.error, TypeError, AttributeError, MemoryError, KeyError],
)
def test_whatever_a_decoder_raises(error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("RGB", (4, 4)), tmp_path / "a.png")

    def load(image: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(UserError, match=f"Cannot decode {path}"):
        read_image(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "bmp", "webp", "tiff"])
def test_half_of_a_file(kind: str, photographs: Path, tmp_path: Path) -> None:
    path = saved(Image.open(photographs / "cat.png").convert("RGB").resize((64, 64)), tmp_path / f"a.{kind}")
    check_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in read_image, check_image:
        with pytest.raises(UserError, match=r"Cannot (decode|read)"):
            read(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "*.jpg", "No image at .* The pattern matched no file"),
        (tmp_path, "Cannot read .*: Is a directory"),
        (saved(Image.new("RGB", (4, 4)), tmp_path / "a.png") / "b.png", "Cannot read .*: Not a directory"),
    ):
        with pytest.raises(UserError, match=said):
            read_image(path)


def test_a_check_decodes_jpegs_at_an_eighth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("RGB", (800, 400)), tmp_path / "a.jpg")
    sizes = []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda self: (load(self), sizes.append(self.size)))
    check_image(path)
    assert set(sizes) == {(100, 50)}


def test_files_are_closed(tmp_path: Path) -> None:
    """Of 64 files that a process may have open, none stays."""
    path = saved(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = [read_image(path) for _ in range(20)]
    assert len(images) == 20 and len(list(Path("/proc/self/fd").iterdir())) == before


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """Pillow starts Ghostscript for it, under whatever name."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match="cannot identify image file"):
        read_image(path)
