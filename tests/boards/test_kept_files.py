"""What a board keeps: whole files alone, each once, and no more than it has room for."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ksm_hw.boards import kept_files
from ksm_hw.boards.kept_files import KeptFiles
from ksm_hw.errors import UserError


@pytest.fixture
def kept(tmp_path: Path) -> KeptFiles:
    return KeptFiles(tmp_path / "cache")


def upload(folder: Path, content: bytes, suffix: str = ".so", name: str | None = None) -> Path:
    path = folder / (name or hashlib.sha256(content).hexdigest() + suffix)
    path.write_bytes(content)
    return path


def nearly_full(kept: KeptFiles, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four files of which a cache holds two, the first used before the second; it has no room for another."""
    monkeypatch.setattr(kept_files, "LIMIT", 250)
    files = [upload(folder, bytes([number]) * 100) for number in range(4)]
    for number, file in enumerate(files[:2]):
        kept.keep(file)
        os.utime(folder / "cache" / "files" / file.name, (number, number))
    return files


def test_what_is_kept_is_not_missing(kept: KeptFiles, tmp_path: Path) -> None:
    file = upload(tmp_path, b"library")
    assert kept.missing([file.name, "other"]) == [file.name, "other"]
    kept.keep(file)
    assert kept.missing([file.name, "other"]) == ["other"] and not file.exists()


def test_a_file_that_arrived_broken_is_not_kept(kept: KeptFiles, tmp_path: Path) -> None:
    file = upload(tmp_path, b"librar", name="0" * 64 + ".so")
    with pytest.raises(UserError, match=r"A file arrived as .* where 0000.*Try again"):
        kept.keep(file)
    assert kept.missing([file.name]) == [file.name]


def test_an_artifact_is_links_to_kept_files(kept: KeptFiles, tmp_path: Path) -> None:
    for content in (b"library", b"pack"):
        kept.keep(upload(tmp_path, content))
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in {"model.so": b"library", "tasks/a.so": b"pack", "tasks/b.so": b"pack"}.items()
    }
    manifest = json.dumps({"files": files})
    for _ in range(2):
        folder = kept.artifact(manifest)
        assert (folder / "manifest.json").read_text() == manifest
        assert (folder / "model.so").read_bytes() == b"library"
        assert (folder / "tasks/a.so").resolve() == (folder / "tasks/b.so").resolve()


def test_the_files_that_were_not_used_for_longest_go(
    kept: KeptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = nearly_full(kept, tmp_path, monkeypatch)
    os.utime(tmp_path / "cache" / "files" / files[0].name, (5, 5))  # It is used again.
    kept.keep(files[2])
    assert kept.missing([file.name for file in files]) == [files[1].name, files[3].name]


def test_what_a_session_was_told_is_kept_stays_for_it(
    kept: KeptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A desk that loads an artifact sends the rest of its files while the cache is full."""
    files = nearly_full(kept, tmp_path, monkeypatch)
    wanted = [file.name for file in (files[0], files[2], files[3])]
    session = KeptFiles(tmp_path / "cache")  # Of a server that was started again: it holds nothing by itself.
    assert session.missing(wanted) == wanted[1:]
    for file in files[2:]:
        session.keep(file)
    assert session.missing([file.name for file in files]) == [files[1].name]
    manifest = json.dumps({"files": {f"{name}.so": {"sha256": name[:64], "bytes": 100} for name in wanted}})
    assert all((session.artifact(manifest) / f"{name}.so").is_file() for name in wanted)


def test_a_file_that_is_kept_no_more_is_told(kept: KeptFiles, tmp_path: Path) -> None:
    manifest = json.dumps({"files": {"model.so": {"sha256": "0" * 64, "bytes": 100}}})
    with pytest.raises(UserError, match=r"does not keep model\.so any more"):
        kept.artifact(manifest)
