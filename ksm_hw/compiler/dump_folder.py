"""The folder of a dump: what may be in it, and the list of what is. Needs no TVM."""

import contextlib
import os
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.files.places import leads_out
from ksm_hw.files.staging import OWN_NAMES
from ksm_hw.files.written import check_folder, explained, written_file

LIST = ".ksm-hw-dump"


def check_dump_folder(folder: Path) -> None:
    """Checks before the compile that a dump can be written into a folder.

    Raises:
        UserError: the folder holds something else than an older dump, or cannot be written.
    """
    with explained(folder):
        if folder.is_file():
            raise UserError(f"{folder} is a file and holds no older dump. Give another path.")
        holds = sorted(set(os.listdir(folder)) - OWN_NAMES) if folder.exists() else []
    if holds and LIST not in holds:
        raise UserError(
            f"{folder} exists and holds no older dump, but {holds[0]}. Nothing is written into it: give another path."
        )
    check_folder(folder)


def empty_dump_folder(folder: Path) -> None:
    """Makes the folder of a dump, or removes the files of an older one from it.

    Raises:
        UserError: as `check_dump_folder`.
    """
    check_dump_folder(folder)
    with explained(folder):
        older = folder / LIST
        for name in older.read_text().splitlines() if older.is_file() else []:
            if not leads_out(name):
                (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # One that is not empty, or the dump's own.
                    (folder / name).parent.rmdir()
        with written_file(older) as temporary:
            temporary.write_text("")
