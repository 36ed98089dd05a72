"""Writing files and folders so that nothing half-written is ever seen, and hashing them."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ksm_hw.errors import UserError


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` when the block ends well, removes it otherwise.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that takes the place of `path` when the block ends well.

    An older folder of that name is replaced only then, and only if it is empty or holds the file `manifest.json`
    or `bundle.json`, so that a mistyped path never costs a user another folder.

    Raises:
        UserError: the folder cannot be written, the disk is full, or `path` is something else than an older result.
    """
    temporary: Path | None = None
    try:
        refuse_foreign_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign_folder(path: Path) -> None:
    """Checks that `written_folder` may take the place of what is at a path.

    Raises:
        UserError: something else than an older result is there.
    """
    if not path.exists():
        return
    ours = path.is_dir() and (
        not any(path.iterdir()) or (path / "manifest.json").is_file() or (path / "bundle.json").is_file()
    )
    if not ours:
        raise UserError(
            f"{path} exists and is no older artifact or bundle, so it is not replaced. Give another path, or remove it."
        )


def _flush_to_disk(path: Path) -> None:
    """Reports a full disk now, not when the kernel writes back."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Nothing was left behind; free space or give another path."
    )
