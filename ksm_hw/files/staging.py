"""Several files of a folder replaced as one, whether the folder is a plain one, a mount, or behind a link.

    .ksm-hw-lock           there while a process changes the folder (`locks`)
    .ksm-hw-next/files     the new files, while they are made
    .ksm-hw-ready/files    the new files, all made: from here on they count, and the older ones do not
    .ksm-hw-ready/plan     JSON: see `_Plan`

A process that is killed before `next` becomes `ready`, which one renaming does, leaves the older files as they are. One
that is killed behind it leaves `ready`, and the next process that reads or writes the folder moves what is left there
to its place. So nobody that looks through `read_whole` ever sees some older files and some newer.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ksm_hw.errors import UserError
from ksm_hw.files.locks import FOLDER_LOCK, locked, locked_folder
from ksm_hw.files.written import explained, flush_to_disk
from ksm_hw.json_document import read_json

_NEXT, _READY = ".ksm-hw-next", ".ksm-hw-ready"
OWN_NAMES = frozenset({FOLDER_LOCK, _NEXT, _READY})  # What a folder may hold beside its files.
_PATIENCE = 5.0  # Seconds for which one who may not write waits for the process that replaces files.
_FINISHED_LATER = f"The newer files are in its {_READY}: free space, and the next command that uses it goes on."

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Plan:
    """How files that are ready take their places: names of older files without a successor go; one is moved last."""

    gone: list[str]
    last: str


@contextlib.contextmanager
def changed_folder(folder: Path) -> Iterator[None]:
    """Around reading, changing and writing a folder, which is made where there is none: no other process does so.

    Raises:
        UserError: the folder cannot be written.
    """
    with locked_folder(folder):
        with explained(folder, _FINISHED_LATER):
            _put_in_place(folder)
            shutil.rmtree(folder / _NEXT, ignore_errors=True)  # Of a process that was killed.
        yield


@contextlib.contextmanager
def staged_files(folder: Path, last: str, gone: Iterable[str] = ()) -> Iterator[Path]:
    """Gives an empty folder, whose files take their places in `folder` all at once when the block ends well.

    Only in the block of `changed_folder`.

    Args:
        folder: to change.
        last: name of the file that comes to its place last, which tells readers what the others are.
        gone: names of older files that go if they have no successor, and the folders that are empty without them.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    staging = folder / _NEXT
    try:
        with explained(folder):
            (staging / "files").mkdir(parents=True)
            yield staging / "files"
            without_successor = [name for name in gone if not os.path.lexists(staging / "files" / name)]
            check_places(folder, [*without_successor, *files_in(staging / "files")])
            (staging / "plan").write_text(json.dumps(dataclasses.asdict(_Plan(without_successor, last))))
            for path in staging.rglob("*"):
                flush_to_disk(path)
            flush_to_disk(staging)
            staging.rename(folder / _READY)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    with explained(folder, _FINISHED_LATER):
        flush_to_disk(folder)
        _put_in_place(folder)


def check_places(folder: Path, names: Iterable[str]) -> None:
    """Checks that files of these names can take their places in a folder, and go from there.

    Behind a name that somebody else wrote, or a link, may be files elsewhere, which must not be replaced or removed.

    Raises:
        UserError: a name or a link leads out of the folder, or a folder or a file is in the way.
    """
    inside = Path(os.path.realpath(folder))
    for name in names:
        path = folder / name
        if "\0" in name or not Path(os.path.realpath(path.parent)).is_relative_to(inside):
            raise UserError(
                f"{path} is outside of its folder, by its name or a link, so nothing is changed. Give another folder, "
                "or put what is behind the link in its place."
            )
        ways = [folder / parent for parent in Path(name).parents]
        in_the_way = [way for way in ways if os.path.lexists(way) and not way.is_dir()]
        if path.is_dir() and not path.is_symlink():
            in_the_way.append(path)
        if in_the_way:
            raise UserError(f"{in_the_way[0]} is in the way of {path}. Move it elsewhere, or give another folder.")


def read_whole(folder: Path, description: str, read: Callable[[], Result]) -> Result:
    """Reads from a folder what belongs together, even where another process replaces it meanwhile.

    Args:
        folder: to read.
        description: name of the file that is replaced last.
        read: reads; it is called again if what it read was replaced.

    Raises:
        UserError: as `read`, or a process was killed while it replaced the files, and they cannot be written here.
    """
    while True:
        before = _identity(folder / description)
        if (folder / _READY).exists():
            _finish_replacing(folder)
            continue
        try:
            found = read()
        except Exception:
            if _is_unchanged(folder, description, before):
                raise
        else:
            if _is_unchanged(folder, description, before):
                return found


def files_in(folder: Path) -> list[str]:
    """The files in a folder, at any depth, by their names, without those of a replacement under way."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path) for path in paths if path.parts[0] not in OWN_NAMES)


def _is_unchanged(folder: Path, description: str, before: object) -> bool:
    return not (folder / _READY).exists() and _identity(folder / description) == before


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _finish_replacing(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        # A process that is not killed is done with this soon: it only renames.
        end = time.monotonic() + _PATIENCE
        while (folder / _READY).exists() and time.monotonic() < end:
            time.sleep(0.02)
        if not (folder / _READY).exists():
            return
        raise UserError(
            f"The files of {folder} are being replaced, or a process was killed while it replaced them. Give the "
            "command again; if it fails again, give it as a user who may write there, and it finishes that."
        )
    with locked(folder / FOLDER_LOCK), explained(folder, _FINISHED_LATER):
        _put_in_place(folder)


def _put_in_place(folder: Path) -> None:
    """Moves the files that are ready to their places, or those that are left of them; needs the lock."""
    ready = folder / _READY
    if (ready / "plan").exists():
        plan = _read_plan(ready / "plan")
        files = [path.relative_to(ready / "files") for path in (ready / "files").rglob("*") if path.is_file()]
        check_places(folder, [*plan.gone, *map(str, files)])
        for name in plan.gone:
            _remove(folder, name)
        for file in sorted(files, key=lambda file: (str(file) == plan.last, file)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            _move(ready / "files" / file, folder / file)
        for place in {folder, *((folder / file).parent for file in files)}:
            flush_to_disk(place)
    if ready.exists():
        shutil.rmtree(ready)


def _read_plan(path: Path) -> _Plan:
    try:
        return read_json(path.read_bytes(), _Plan)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Copy or make {path.parents[1]} again.") from error


def _remove(folder: Path, name: str) -> None:
    """Removes a file, and the folders that are empty without it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (folder / name).unlink()
    with contextlib.suppress(OSError):
        for parent in list(Path(name).parents)[:-1]:
            (folder / parent).rmdir()


def _move(source: Path, destination: Path) -> None:
    try:
        source.replace(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Something is mounted in the folder.
        beside = destination.with_name(f"{_NEXT}-{destination.name}")
        shutil.copy2(source, beside)
        flush_to_disk(beside)
        beside.replace(destination)
        source.unlink()
