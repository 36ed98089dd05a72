"""The files that a board keeps from one session to the next, each once, whichever artifacts it belongs to."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from ksm_hw.artifact.manifest import MANIFEST, listed_files
from ksm_hw.boards.protocol import kept_name
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.files.locks import FOLDER_LOCK, locked
from ksm_hw.files.written import explained, written_file

LIMIT = 4 << 30  # Bytes of kept files; the ones that were not used for longest go first.

_log = logging.getLogger(__name__)


class KeptFiles:
    """Files by their names (`kept_name`), below a folder of the board.

    Those that a session asked for stay as long as it lasts: it was told that it need not send them.
    """

    def __init__(self, cache: Path) -> None:
        self._asked_for: set[str] = set()
        self._files, self._artifacts = cache / "files", cache / "artifacts"
        self._lock = cache / FOLDER_LOCK  # Several servers of a board may share its cache.
        with explained(cache):
            for folder in (self._files, self._artifacts):
                folder.mkdir(parents=True, exist_ok=True)

    def missing(self, names: list[str]) -> list[str]:
        """Those of some files that are not kept; the others stay now."""
        self._asked_for.update(names)
        missing = []
        with locked(self._lock):
            for name in names:
                try:
                    os.utime(self._files / name)  # Servers that share this cache let it go last.
                except FileNotFoundError:
                    missing.append(name)
        _log.info("%d of %d files are kept from before", len(names) - len(missing), len(names))
        return missing

    def keep(self, uploaded: Path) -> None:
        """Takes a file that is named as it will be kept.

        Raises:
            UserError: its content is not what its name says, or it cannot be kept.
        """
        name = uploaded.name
        found = kept_name(name, sha256_of_file(uploaded))
        if found != name:
            raise UserError(f"A file arrived as {found} where {name} was sent. Try again.")
        incomplete = self._files / f"{name}.incomplete"
        with locked(self._lock):
            try:
                self._make_room(uploaded.stat().st_size)
                shutil.move(uploaded, incomplete)
                incomplete.replace(self._files / name)
            except OSError as error:
                incomplete.unlink(missing_ok=True)
                raise UserError(f"The board cannot keep the artifact: {error.strerror}. Free space on it.") from error

    def artifact(self, manifest: str) -> Path:
        """A folder with the files that a manifest lists: links to the kept ones.

        Args:
            manifest: its text.

        Raises:
            UserError: a file is not kept.
        """
        folder = self._artifacts / hashlib.sha256(manifest.encode()).hexdigest()
        with locked(self._lock), explained(folder):
            for name, entry in listed_files(manifest).items():
                link, kept = folder / name, self._files / kept_name(name, entry.sha256)
                if not kept.exists():
                    raise UserError(f"The board does not keep {name} any more. Give the same command again.")
                os.utime(kept)
                if not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.unlink(missing_ok=True)
                    link.symlink_to(kept)
            if not (folder / MANIFEST).exists():  # Else processes may be reading it; its name says what it holds.
                with written_file(folder / MANIFEST) as temporary:
                    temporary.write_text(manifest)
        return folder

    def _make_room(self, size: int) -> None:
        oldest_first = sorted(self._files.iterdir(), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in oldest_first) + size
        for path in oldest_first:
            if total <= LIMIT:
                break
            if path.name in self._asked_for:
                continue
            _log.info("%s was not used for longest, and goes", path.name)
            total -= path.stat().st_size
            path.unlink()
