"""Where a user's caches and data lie: by the XDG specification, or in a temporary folder where a home is of no use."""

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)


def cache_folder(name: str) -> Path:
    """A folder of ours for what can be made again: in `$XDG_CACHE_HOME/ksm-hw`, or `~/.cache/ksm-hw`.

    It is not made. Where it cannot be, it is one in a temporary folder, which the log says once.

    Raises:
        UserError: there is no temporary folder either.
    """
    folder = _base("XDG_CACHE_HOME", ".cache") / "ksm-hw"
    return (folder if _can_be_written(folder) else _in_place_of(folder, "cache")) / name


def data_folder(name: str) -> Path:
    """A folder of ours for what was installed: in `$XDG_DATA_HOME/ksm-hw`, or `~/.local/share/ksm-hw`.

    As `cache_folder`, but one that is there already may be read-only.

    Raises:
        UserError: there is no temporary folder either.
    """
    folder = _base("XDG_DATA_HOME", ".local/share") / "ksm-hw"
    usable = (folder / name).is_dir() or _can_be_written(folder)
    return (folder if usable else _in_place_of(folder, "data")) / name


def provide_home() -> None:
    """Gives this process and its children a home where the user has none: TVM and others ask for it when imported.

    Raises:
        UserError: there is no temporary folder either.
    """
    if os.path.isabs(os.environ.get("HOME", "")):
        return
    import pwd

    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = ""
    if not os.path.isabs(home):
        home = str(_temporary_folder())
        _log.warning("This user has no home: %s takes its place. The system may empty that.", home)
    os.environ["HOME"] = home


def _base(variable: str, in_home: str) -> Path:
    """The folder that a variable names; the specification has one that is relative ignored."""
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    provide_home()
    return Path(os.environ["HOME"]) / in_home


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or the nearest above it that is there, can be written."""
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def _in_place_of(folder: Path, kind: str) -> Path:
    temporary = _temporary_folder() / kind
    _log.warning("%s cannot be written: %s takes its place. The system may empty that.", folder, temporary)
    return temporary


@functools.cache
def _temporary_folder() -> Path:
    """A folder that is this user's alone, and the same for each of their processes."""
    try:
        folder = Path(tempfile.gettempdir()) / f"ksm-hw-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UserError(
            f"There is no home and no temporary folder that can be written ({error.strerror}). Set HOME or TMPDIR to a "
            "folder of yours."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{folder} belongs to others, or they can write to it. Remove it, or set HOME to a folder.")
    return folder
