"""Which entries of a folder are images: the one rule, for `run`, `verify` and `train`.

An image is a file whose name ends in one of IMAGE_SUFFIXES, in upper or lower case, in the folder or in one below it.
Hidden entries are passed over, and so are the folders that file managers and storage devices leave. What is passed over
is counted and said. A file that a user names is an image whatever its name: only what lies in folders is judged.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Of Synology's and QNAP's storage devices, macOS's archives, Windows and Linux; those that begin with a dot are hidden.
_SYSTEM_FOLDERS = {
    *("@eadir", "@__thumb", "@recycle", "#recycle", "__macosx"),
    *("$recycle.bin", "system volume information", "lost+found"),
}

HIDDEN, SYSTEM_FOLDER, NO_IMAGE = "hidden", "folders of file managers", "no image files"


@dataclass(frozen=True)
class FoundImages:
    """The images of a folder and of those below it, by folder and name; how many entries were passed over, and why."""

    images: tuple[Path, ...]
    passed_over: Mapping[str, int]


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The image files that paths name: a folder stands for its images, anything else, missing or not, for itself.

    Raises:
        UserError: a folder has no images, or cannot be listed.
    """
    return [image for path in paths for image in (images_of_folder(path) if os.path.isdir(path) else [path])]


def images_of_folder(folder: Path) -> list[Path]:
    """The image files of a folder and of those below it; says what it passes over.

    Raises:
        UserError: there are none, or the folder cannot be listed.
    """
    found = find_images(folder)
    say_what_was_passed_over(folder, found.passed_over)
    if not found.images:
        raise UserError(f"No images in {folder}. Expected files that end in {', '.join(IMAGE_SUFFIXES)}.")
    return list(found.images)


def find_images(folder: Path) -> FoundImages:
    """Looks through a folder and those below it, also those that links lead to.

    Raises:
        UserError: a folder is missing or cannot be listed.
    """
    images, passed_over = [], Counter[str]()
    # Each folder with the real paths of those that it was reached through: a link to one of them leads in a circle.
    waiting = [(folder, frozenset([os.path.realpath(folder)]))]
    while waiting:
        below, through = waiting.pop()
        folders, files = _entries(below)
        for name in folders:
            real = os.path.realpath(below / name)
            if reason := _why_no_folder(name):
                passed_over[reason] += 1
            elif real not in through:
                waiting.append((below / name, through | {real}))
        for name in files:
            if reason := _why_no_image(below / name):
                passed_over[reason] += 1
            else:
                images.append(below / name)
    images.sort(key=lambda path: (str(path.parent), path.name))
    return FoundImages(tuple(images), passed_over)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder that may hold images, sorted.

    Raises:
        UserError: the folder is missing or cannot be listed.
    """
    return sorted(name for name in _entries(folder)[0] if not _why_no_folder(name))


def say_what_was_passed_over(folder: Path, passed_over: Mapping[str, int]) -> None:
    """Says it in one line, which goes to stderr unless a program that uses this package has it otherwise."""
    if counts := ", ".join(f"{count} {reason}" for reason, count in sorted(passed_over.items()) if count):
        _log.warning("%s: passed over: %s", folder, counts)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, links to folders among them, and those of all else."""
    folders: list[str] = []
    files: list[str] = []
    try:
        for name in os.listdir(folder):
            (folders if os.path.isdir(folder / name) else files).append(name)
    except OSError as error:
        raise UserError(f"Cannot list {folder}: {error.strerror}. Check the path and its permissions.") from error
    return folders, files


def _why_no_folder(name: str) -> str | None:
    return HIDDEN if name.startswith(".") else SYSTEM_FOLDER if name.casefold() in _SYSTEM_FOLDERS else None


def _why_no_image(path: Path) -> str | None:
    if path.name.startswith("."):
        return HIDDEN
    # A pipe or a device would be waited for. What a link has lost is an image: reading it says so.
    another_kind = os.path.exists(path) and not os.path.isfile(path)
    return NO_IMAGE if another_kind or not path.name.lower().endswith(IMAGE_SUFFIXES) else None
