"""A folder of tuning records that several processes use: one tunes at a time, and whoever reads sees whole lines."""

import shutil
from pathlib import Path

import pytest

from ksm_hw.compiler.tuning.records_folder import HEADER, records_sha256, tuned_folder, whole_records
from ksm_hw.files.locks import FOLDER_LOCK

LINES = "first\nsecond\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a tune leaves it that is killed while it writes a line."""
    path = tmp_path / "records"
    path.mkdir()
    (path / HEADER).write_text("{}\n")
    (path / "database_workload.json").write_text(LINES)
    (path / "database_tuning_record.json").write_text(LINES + "thi")
    return path


def test_the_next_tune_goes_on_behind_the_last_whole_line(folder: Path) -> None:
    with tuned_folder(folder):
        assert (folder / FOLDER_LOCK).exists(), "another tune waits"
        assert {(folder / f"database_{name}.json").read_text() for name in ("workload", "tuning_record")} == {LINES}
    assert not (folder / FOLDER_LOCK).exists()


def test_what_is_no_record_is_not_touched(folder: Path) -> None:
    digest = records_sha256(folder)
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\n\xff\xd9")
    with tuned_folder(folder):
        pass
    assert (folder / "photo.jpg").read_bytes() == b"\xff\xd8\n\xff\xd9"
    (folder / "database_tuning_record.json").write_text(LINES + "thi")
    assert records_sha256(folder) == digest


def test_who_reads_while_a_tune_writes_sees_whole_lines(folder: Path) -> None:
    with whole_records(folder) as whole:
        assert whole == folder, "nobody writes: what is damaged there is told"
    (folder / FOLDER_LOCK).write_text("1 ksm-hw tune")
    before = (folder / "database_tuning_record.json").read_text()
    with whole_records(folder) as whole:
        assert {path.name for path in whole.iterdir()} == {path.name for path in folder.iterdir()} - {FOLDER_LOCK}
        assert (whole / "database_tuning_record.json").read_text() == LINES
        digest = records_sha256(whole)
    assert not whole.exists() and (folder / "database_tuning_record.json").read_text() == before
    shutil.copy(folder / "database_workload.json", folder / "database_tuning_record.json")
    assert records_sha256(folder) == digest
