"""The header of a folder of tuning records, `records.json`: what was tuned, and by whom. Needs no TVM.

A record names an operator, not a network, weights or a mask. So records serve every task of a backbone, and other
backbones with operators of the same shapes.
"""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.modes import IntermediateRepresentation
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.files.locks import FOLDER_LOCK, locked_folder
from ksm_hw.files.staging import OWN_NAMES
from ksm_hw.files.written import check_folder, explained, written_file
from ksm_hw.toolchains.targets import CompileTarget

FORMAT_VERSION = 1
HEADER = "records.json"
AUTOTVM_RECORDS = "autotvm.log"
MEASUREMENTS, OPERATORS = "database_tuning_record.json", "database_workload.json"  # As MetaSchedule names them.
# In the order in which a copy is whole: each measurement is of an operator that is copied behind it.
_RECORDS = (AUTOTVM_RECORDS, MEASUREMENTS, OPERATORS)


@dataclass(frozen=True)
class Origin:
    """What made records.

    Attributes:
        ir: the compiler whose operators were tuned.
        tuner: the search; Relax has its own alone, with the name "".
        tvm_version: of the TVM that built them.
    """

    ir: IntermediateRepresentation
    tuner: str
    tvm_version: str


def write_header(folder: Path, target: CompileTarget, origin: Origin) -> None:
    """Writes `records.json` anew, with the date of now.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {
        "format_version": FORMAT_VERSION,
        **asdict(origin),
        "target": target.name,
        "tvm_target": target.tvm,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with written_file(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_header(folder: Path) -> dict[str, Any]:
    """What `records.json` says.

    Raises:
        UserError: there is none, or it is damaged or of another version of ksm-hw.
    """
    path = folder / HEADER
    try:
        # Records from before there were Relay's do not say of which IR they are.
        header: dict[str, Any] = {"ir": "relax", "tuner": "", **json.loads(path.read_text())}
        if header["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path} is of another version of ksm-hw. Tune again, into another folder.")
        if missing := {"target", "tvm_target", "tvm_version", "date"} - header.keys():
            raise KeyError(*sorted(missing))
    except OSError as error:
        raise UserError(f"No tuning records at {folder}: {error.strerror}: {path}. Make some: ksm-hw tune") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Tune again, into another folder.") from error
    return header


def records_sha256(folder: Path) -> str:
    """A hash of all that a folder's records say; not of the header, which has a date. 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in _records(folder):
        digest.update(f"{path.name}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def check_header(folder: Path, target: CompileTarget, ir: IntermediateRepresentation, tvm_version: str) -> str:
    """Checks that records were made for a target, and by the compiler that will read them; returns their tuner.

    Raises:
        UserError: there are none, they are damaged, or of another target, IR or version of TVM.
    """
    header = read_header(folder)
    if header["ir"] != ir:
        raise UserError(
            f"{folder} was tuned with --ir {header['ir']}, whose operators are not those of --ir {ir}. Give --ir "
            f"{header['ir']}, or tune again into another folder."
        )
    if header["tvm_version"] != tvm_version:
        raise UserError(
            f"{folder} was tuned with TVM {header['tvm_version']}, and this is {tvm_version}, whose schedules differ. "
            "Tune again, into another folder."
        )
    if header["tvm_target"] != json.loads(json.dumps(target.tvm)):
        raise UserError(
            f"{folder} was tuned for target '{header['target']}', {json.dumps(header['tvm_target'])}; '{target.name}' "
            f"is {json.dumps(target.tvm)}. Give the target that it was tuned for, or tune again into another folder."
        )
    return str(header["tuner"])


def prepare_folder(folder: Path, target: CompileTarget, origin: Origin) -> None:
    """Checks records to go on with, or makes a folder for new ones.

    Raises:
        UserError: as `check_header`; they are of another tuner; the folder holds something else, or cannot be made.
    """
    if (folder / HEADER).exists():
        tuner = check_header(folder, target, origin.ir, origin.tvm_version)
        if tuner != origin.tuner:
            raise UserError(
                f"{folder} was tuned with --tuner {tuner}. Give the same to go on, or another folder for records of "
                f"{origin.tuner}."
            )
        return
    check_records_folder(folder)
    write_header(folder, target, origin)


def check_records_folder(folder: Path) -> None:
    """Checks before the work that records can be written into a folder, which need not exist.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    with explained(folder):
        others = set(os.listdir(folder)) - OWN_NAMES if folder.is_dir() else set()
        if folder.is_file() or (others and HEADER not in others):
            raise UserError(f"{folder} exists and holds no tuning records. Give another folder, or remove it.")
    check_folder(folder)


@contextlib.contextmanager
def tuned_folder(folder: Path) -> Iterator[None]:
    """Around a tune: no other process tunes into the folder, and the line in which a killed one ended is gone.

    Raises:
        UserError: the folder cannot be written.
    """
    with locked_folder(folder):
        with explained(folder):
            for file in _records(folder):
                _cut_to_whole_lines(file)
        yield


@contextlib.contextmanager
def whole_records(folder: Path) -> Iterator[Path]:
    """A folder with the records of another, as whole lines: while a tune writes there, a copy.

    Raises:
        UserError: it cannot be copied.
    """
    if not (folder / FOLDER_LOCK).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ksm-hw-tuned-") as temporary:
        with explained(Path(temporary)):
            for file in [folder / HEADER, *_records(folder)]:
                if file.exists():
                    _cut_to_whole_lines(Path(shutil.copy(file, temporary)))
        yield Path(temporary)


def _records(folder: Path) -> list[Path]:
    """The files of a line for each operator or measurement; what else lies there is not ours."""
    return [folder / name for name in _RECORDS if (folder / name).is_file()]


def _cut_to_whole_lines(file: Path) -> None:
    with file.open("r+b") as stream:
        content = stream.read()
        if not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)


@contextlib.contextmanager
def damage_explained(folder: Path, measured: str) -> Iterator[None]:
    """Around the reading of records; `measured` is the file with a line for each measurement.

    Raises:
        UserError: what is read is damaged: the tune may have been killed while it wrote.
    """
    try:
        yield
    except Exception as error:
        said = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise UserError(
            f"The records in {folder} are damaged ({said}). Remove the line that is cut off from {measured}, or tune "
            "again into another folder."
        ) from error
