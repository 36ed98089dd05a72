"""Whether files and folders lie in folders, whatever names, paths, links and mounts lead to them."""

import os
from pathlib import Path


def leads_out(name: str) -> bool:
    """Whether the name of a file in a folder, as somebody wrote it down, is that of one elsewhere, or of none."""
    return os.path.isabs(name) or ".." in Path(name).parts or "\0" in name


def overlap(one: Path, other: Path) -> bool:
    """Whether two folders are the same, or one lies in the other; neither need exist."""
    return lies_in(one, other) or lies_in(other, one)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it.

    By the paths behind all links, and by what is there: a folder that is mounted elsewhere, too, is one folder.
    """
    path, folder = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    places = (path, *path.parents)
    identity = _identity(folder)
    return folder in places or (identity is not None and identity in map(_identity, places))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
