"""Whether folders lie in each other, whatever paths, links and mounts lead to them."""

import os
from collections.abc import Iterator
from pathlib import Path


def overlap(one: Path, other: Path) -> bool:
    """Whether two folders are the same, or one lies in the other; neither need exist."""
    return lies_in(one, other) or lies_in(other, one)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it.

    By the paths behind all links, and by what is there: a mount of a folder within is that folder.
    """
    path, folder = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return folder in (path, *path.parents) or not set(_identities(path)).isdisjoint(_folders_within(folder))


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    """Device and inode of a path and of all folders above it but the root, as far as they exist."""
    for each in (path, *path.parents[:-1]):
        try:
            status = each.stat()
        except OSError:
            continue
        yield status.st_dev, status.st_ino


def _folders_within(folder: Path) -> set[tuple[int, int]]:
    statuses = [os.stat(path) for path, _, _ in os.walk(folder)]
    return {(status.st_dev, status.st_ino) for status in statuses}
