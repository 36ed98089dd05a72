"""A folder of Relax's tuning records: what `ksm-hw tune` writes and `ksm-hw compile --tuned` applies.

records.json                    what was tuned (`records_folder`)
database_workload.json          MetaSchedule's database: the operators,
database_tuning_record.json     and what was measured of each: a schedule and its seconds, 1e10 where it failed
"""

from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.s_tir.meta_schedule.database import Database, JSONDatabase

from ksm_hw.compiler.tuning.records_folder import (
    MEASUREMENTS,
    Origin,
    check_header,
    damage_explained,
    prepare_folder,
    write_header,
)
from ksm_hw.toolchains.targets import CompileTarget

_ORIGIN = Origin(ir="relax", tuner="", tvm_version=tvm.__version__)


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
        write_header(self.folder, self.target, _ORIGIN)


def open_records(folder: Path, target: CompileTarget) -> TuningRecords:
    """Opens the records that were made for a target.

    Raises:
        UserError: there are none, they are damaged, or were made for another target, through Relay, or with another
            version of TVM.
    """
    check_header(folder, target, _ORIGIN.ir, _ORIGIN.tvm_version)
    return TuningRecords(folder, target, _open_database(folder, allow_missing=False))


def create_records(folder: Path, target: CompileTarget) -> TuningRecords:
    """Opens the records of a target to go on with, or makes the folder.

    Raises:
        UserError: as `open_records`, or the folder holds something else, or cannot be made.
    """
    prepare_folder(folder, target, _ORIGIN)
    return TuningRecords(folder, target, _open_database(folder, allow_missing=True))


def _open_database(folder: Path, allow_missing: bool) -> Database:
    with damage_explained(folder, MEASUREMENTS):
        return JSONDatabase(work_dir=str(folder), allow_missing=allow_missing)
