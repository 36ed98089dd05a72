"""Locks, for what is read, changed and written by several processes at once.

A lock is a file that its holder keeps locked (flock), so a process that is killed leaves none behind. It holds the
number and the command of its holder, for those who wait, and is removed at the end.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ksm_hw.files.written import explained

if TYPE_CHECKING:
    from filelock import FileLock

FOLDER_LOCK = ".ksm-hw-lock"
_POLL_SECONDS = 0.1
# What file systems say that know no locks: some of networks, and some in user space.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Makes a folder where there is none, and keeps other processes that do the same away while the block runs.

    As `locked`, with a file of its own. Where the block fails, folders that were made go if they are empty.
    """
    with made_folder(folder), locked(Path(os.path.realpath(folder)) / FOLDER_LOCK):
        yield


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder where there is none; where the block fails, folders that were made go if they are empty.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(os.path.realpath(folder))
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock whose file a path names while the block runs; waits for another holder and says for whom.

    A lock is not to be taken in the block of the same one. Where the file system knows no locks this is said, and the
    block runs without one.

    Raises:
        UserError: the lock's file cannot be written.
    """
    # Imported late: the library takes a tenth of a second.
    from filelock import FileLock, Timeout

    # For all who may write to the folder: of a user whose process was killed the file is still there.
    lock = FileLock(path, mode=0o666, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _log.warning("Waiting for %s, which uses %s. Ctrl-C ends the wait.", _holder(path), path.parent)
                _wait(lock, path.parent)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                _log.warning("%s knows no locks: let no other process write there meanwhile.", path.parent)
            if lock.is_locked:
                stack.callback(lock.release)
                # While it is held: who waits finds that this file is gone, and takes the next.
                stack.callback(path.unlink, missing_ok=True)
                _sign(path)
        yield


def _sign(path: Path) -> None:
    """Writes who holds a lock, for those who wait; a full disk costs them that alone."""
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    with contextlib.suppress(OSError):
        path.write_text(f"{os.getpid()} {command}", encoding="utf-8", errors="backslashreplace")


def _wait(lock: "FileLock", folder: Path) -> None:
    while not lock.is_locked:
        try:
            lock.acquire(poll_interval=_POLL_SECONDS)
        except FileNotFoundError:
            if folder.exists():
                raise
            folder.mkdir(parents=True, exist_ok=True)  # The holder made it, failed, and removed it.


def _holder(path: Path) -> str:
    """Who holds a lock, for a person."""
    try:
        number, _, command = path.read_text(encoding="utf-8", errors="replace").partition(" ")
    except OSError:
        number = command = ""
    return f"process {number} ({command})" if number else "another process"
