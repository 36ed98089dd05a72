"""A file that is written whole or not at all, and the check before long work that it can be."""

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ksm_hw.errors import UserError

_STANDARD_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
# Of a file in whose place no other can be put, because something is mounted on it.
_NOT_REPLACED = (errno.EBUSY, errno.EXDEV)


@contextlib.contextmanager
def explained(path: Path, outcome: str = "Nothing was left behind; free space or give another path.") -> Iterator[None]:
    """Around the writing of a file or folder.

    Args:
        path: of the file or folder.
        outcome: what became of it where it cannot be written, and what to do, in sentences.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}. {outcome}") from error


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path, whose file takes the place of `path` when the block ends well, and is removed otherwise.

    Of a symbolic link it is the file that the link names. A file that is replaced leaves its mode and owner. What is no
    file, such as a device or a pipe, and a file in a folder that cannot be written, gets the content at the end.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    with explained(path), contextlib.ExitStack() as stack:
        target = Path(os.path.realpath(path))
        if _is_written_in_place(path):
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ksm-hw-")), "content")
            yield temporary
            _pour(temporary, path)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        stack.callback(temporary.unlink, missing_ok=True)
        _take_mode_and_owner(temporary, target)
        yield temporary
        flush_to_disk(temporary)
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno not in _NOT_REPLACED:
                raise
            _pour(temporary, target)


def check_file(path: Path) -> None:
    """Checks before long work that a file can be written; leaves nothing.

    Raises:
        UserError: it cannot.
    """
    with explained(path):
        if _descriptor_of(path) is not None:
            return
        target = Path(os.path.realpath(path))
        mode = _mode(target)
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "It is a folder")
        if mode is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not _is_written_in_place(path):
            _probe(target.parent, target.name)


def check_folder(path: Path) -> None:
    """Checks before long work that files can be put into a folder, which need not exist; leaves nothing.

    Raises:
        UserError: they cannot.
    """
    with explained(path):
        _probe(Path(os.path.realpath(path)))


def flush_to_disk(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, outlast a power failure; reports a full disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # What a file system says that cannot flush a folder.
            raise
    finally:
        os.close(descriptor)


def _probe(folder: Path, *names: str) -> None:
    """Writes a page into a folder, or into the nearest one above it that exists; checks the names of what it lacks."""
    existing = folder
    while _mode(existing) is None:
        existing = existing.parent
    for name in (*folder.relative_to(existing).parts, *names):
        _mode(existing / name)  # Raises where the name is too long.
    with tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(bytes(4096))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _is_written_in_place(path: Path) -> bool:
    mode = _mode(path)
    if mode is None or stat.S_ISDIR(mode):
        return False
    folder = os.path.dirname(os.path.realpath(path))
    return _descriptor_of(path) is not None or not stat.S_ISREG(mode) or not os.access(folder, os.W_OK)


def _descriptor_of(path: Path) -> int | None:
    """The number of the open file that a path names, as /dev/stdout does."""
    name = os.path.abspath(path)
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name)
    return int(found[1]) if found else _STANDARD_STREAMS.get(name)


def _pour(source: Path, path: Path) -> None:
    """Writes a file's content into what is there: behind what was printed, if it is this process's own output."""
    descriptor = _descriptor_of(path)
    with explained(path, "What is there now may be a part of it; free space or give another path."):
        if descriptor is not None:
            sys.stdout.flush()
        with source.open("rb") as content, open(path if descriptor is None else os.dup(descriptor), "wb") as stream:
            shutil.copyfileobj(content, stream)


def _take_mode_and_owner(temporary: Path, target: Path) -> None:
    """Those of the file that is replaced, or the mode that a new file has."""
    if _mode(target) is None:
        temporary.chmod(0o666 & ~_umask())
        return
    older = target.stat()
    with contextlib.suppress(PermissionError):  # Only root gives files away.
        os.chown(temporary, older.st_uid, older.st_gid)
    temporary.chmod(stat.S_IMODE(older.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
