"""Every image of a folder is decoded before anything is learned: a damaged one would end the first epoch."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.images.decoding import check_image
from ksm_hw.images.stream import map_images
from ksm_hw.learning.datasets import FolderSplit, ImageSplit, TaskData


def unreadable_images(
    data: TaskData, on_image: Callable[[int, int], None] = lambda done, total: None
) -> dict[Path, UserError]:
    """The images that do not decode, each with what is wrong with it; a registered set was decoded when it was read.

    Args:
        data: the images of a task.
        on_image: called after each image with (images done, images there are).
    """
    files = [file for split in (data.train, data.test) if isinstance(split, FolderSplit) for file in split.files]
    failures = {}
    for done, (file, error) in enumerate(map_images(_what_is_wrong, files), start=1):
        if error is not None:
            failures[file] = error
        on_image(done, len(files))
    return failures


def _what_is_wrong(file: Path) -> UserError | None:
    try:
        check_image(file)
    except UserError as error:
        return error
    return None


def without_images(data: TaskData, left_out: Collection[Path]) -> TaskData:
    """The same task without some of the images of its folder.

    Raises:
        UserError: a class has none left.
    """
    return dataclasses.replace(data, train=_without(data.train, left_out), test=_without(data.test, left_out))


def _without(split: ImageSplit, left_out: Collection[Path]) -> ImageSplit:
    if not isinstance(split, FolderSplit):
        return split
    kept = [(file, label) for file, label in zip(split.files, split.labels, strict=True) if file not in left_out]
    if empty := sorted(set(split.labels) - {label for _, label in kept}):
        first = split.files[split.labels.index(empty[0])].parent
        raise UserError(f"No image of class '{split.classes[empty[0]]}' in {first} can be read. Replace them.")
    return dataclasses.replace(split, files=[file for file, _ in kept], labels=[label for _, label in kept])
