"""A folder of tuning records: what `ksm-hw tune` writes and `ksm-hw compile --tuned` applies.

    records.json                    what was tuned: target, version of TVM, date of the last measurement
    database_workload.json          MetaSchedule's database: the operators,
    database_tuning_record.json     and what was measured of each: a schedule and its seconds, 1e10 where it failed

A record names an operator, not a network, weights or a mask. So records serve every task of a backbone, and other
backbones with operators of the same shapes.
"""

import contextlib
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.s_tir.meta_schedule.database import Database, JSONDatabase

from ksm_hw.compiler.targets import CompileTarget
from ksm_hw.errors import UserError
from ksm_hw.files import written_file

FORMAT_VERSION = 1
HEADER = "records.json"


@dataclass(frozen=True)
class TuningRecords:
    """An open folder of records.

    Attributes:
        folder: where they are.
        target: what they were measured for.
        database: MetaSchedule's database; what is committed to it is written at once.
    """

    folder: Path
    target: CompileTarget
    database: Database

    def write_header(self) -> None:
        """Writes `records.json` anew, with the date of now.

        Raises:
            UserError: the folder cannot be written.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "target": self.target.name,
            "tvm_target": self.target.tvm,
            "tvm_version": tvm.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        with written_file(self.folder / HEADER) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def open_records(folder: Path, target: CompileTarget) -> TuningRecords:
    """Opens the records that were made for a target.

    Raises:
        UserError: there are none, they are damaged, or were made for another target or with another version of TVM.
    """
    header = read_header(folder)
    if header["tvm_version"] != tvm.__version__:
        raise UserError(
            f"{folder} was tuned with TVM {header['tvm_version']}, and this is {tvm.__version__}, whose schedules "
            "differ. Tune again, into another folder."
        )
    if header["tvm_target"] != json.loads(json.dumps(target.tvm)):
        raise UserError(
            f"{folder} was tuned for target '{header['target']}', {json.dumps(header['tvm_target'])}; '{target.name}' "
            f"is {json.dumps(target.tvm)}. Give the target that it was tuned for, or tune again into another folder."
        )
    with _damage_explained(folder):
        return TuningRecords(folder, target, _open_database(folder, allow_missing=False))


def create_records(folder: Path, target: CompileTarget) -> TuningRecords:
    """Opens the records of a target to go on with, or makes the folder.

    Raises:
        UserError: as `open_records`, or the folder holds something else, or cannot be made.
    """
    if (folder / HEADER).exists():
        return open_records(folder, target)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no tuning records. Give another folder, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records = TuningRecords(folder, target, _open_database(folder, allow_missing=True))
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror}. Give another folder.") from error
    records.write_header()
    return records


def read_header(folder: Path) -> dict[str, Any]:
    """What `records.json` says.

    Raises:
        UserError: there is none, or it is damaged or of another version of ksm-hw.
    """
    path = folder / HEADER
    try:
        header: dict[str, Any] = json.loads(path.read_text())
        if header["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path} is of another version of ksm-hw. Tune again, into another folder.")
        if missing := {"target", "tvm_target", "tvm_version", "date"} - header.keys():
            raise KeyError(*sorted(missing))
    except OSError as error:
        raise UserError(f"No tuning records at {folder}: {error.strerror}: {path}. Make some: ksm-hw tune") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Tune again, into another folder.") from error
    return header


@contextlib.contextmanager
def _damage_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise UserError(
            f"The records in {folder} are damaged ({said}). Remove the line that is cut off from "
            "database_tuning_record.json, or tune again into another folder."
        ) from error


def _open_database(folder: Path, allow_missing: bool) -> Database:
    return JSONDatabase(work_dir=str(folder), allow_missing=allow_missing)
