"""Files of a folder that are replaced as one, in whatever kind of folder."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.files import staging
from ksm_hw.files.staging import changed_folder, files_in, read_whole, staged_files

LAST = "Last"  # Before the others in the order of names, which it shall not come in.


def replace(folder: Path, files: dict[str, str], gone: tuple[str, ...] = ()) -> None:
    with changed_folder(folder), staged_files(folder, LAST, gone) as made:
        for name, text in {**files, LAST: "".join(files.values())}.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in files_in(folder)}


@pytest.fixture(params=["plain", "link", "mount", "mount inside"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder, as users have them."""
    path = tmp_path / "folder"
    if request.param == "link":
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to("elsewhere")
    if not request.param.startswith("mount"):
        yield path
        return
    place = path if request.param == "mount" else path / "below"
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", place], check=True)


def test_files_take_their_places_and_others_stay(folder: Path) -> None:
    replace(folder, {"a": "1", "below/b": "1", "old": "1"})
    (folder / "users").write_text("own")
    identity = folder.stat().st_ino
    replace(folder, {"a": "2", "below/c": "2"}, gone=("a", "old", "below/b", "never"))
    assert contents(folder) == {"a": "2", "below/c": "2", LAST: "22", "users": "own"}
    assert folder.stat().st_ino == identity, "a shell that stands in the folder still does"
    assert set(os.listdir(folder)) == {"a", "below", LAST, "users"}
    replace(folder, {"a": "3"}, gone=("below/c",))
    assert contents(folder) == {"a": "3", LAST: "3", "users": "own"}


def test_a_failure_leaves_the_older_files_and_no_new_folder(tmp_path: Path) -> None:
    replace(tmp_path / "folder", {"a": "1"})
    for folder in (tmp_path / "folder", tmp_path / "new" / "folder"):
        with pytest.raises(ZeroDivisionError), changed_folder(folder), staged_files(folder, LAST, ["a"]) as made:
            (made / "a").write_text("2")
            raise ZeroDivisionError
    assert contents(tmp_path / "folder") == {"a": "1", LAST: "1"}
    assert os.listdir(tmp_path) == ["folder"] and set(os.listdir(tmp_path / "folder")) == {"a", LAST}


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    message = r"^Cannot write \S+: No space left on device\. Nothing was left behind"
    with pytest.raises(UserError, match=message), changed_folder(tmp_path), staged_files(tmp_path, LAST):
        Path("/dev/full").write_text("newer")


@pytest.mark.parametrize("obstacle", ["file", "folder", "link"])
def test_what_can_never_take_its_place_does_not_become_ready(obstacle: str, tmp_path: Path) -> None:
    """It would be tried again by every later process, and the folder be of no use any more."""
    folder = tmp_path / "folder"
    replace(folder, {"a": "1"})
    if obstacle == "link":
        (folder / "below").symlink_to(tmp_path)
    elif obstacle == "file":
        (folder / "below").write_text("mine")
    else:
        (folder / "below" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is in the way of|outside of its folder"):
        replace(folder, {"a": "2", "below/b": "2"})
    assert read_whole(folder, LAST, lambda: (folder / "a").read_text()) == "1"
    assert set(os.listdir(folder)) == {"a", "below", LAST} and os.listdir(tmp_path) == ["folder"]


def test_a_disk_that_is_full_in_the_end_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(tmp_path, {"a": "1"})

    def full(source: Path, destination: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_move", full)
        with pytest.raises(UserError, match=r"No space left on device\. The newer files are in its \.ksm-hw-ready"):
            replace(tmp_path, {"a": "2"})
    assert read_whole(tmp_path, LAST, lambda: contents(tmp_path)) == {"a": "2", LAST: "2"}


def half_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process leaves it that is killed when it has moved one file."""
    replace(folder, {"a": "1", "b": "1"})

    def killed(source: Path, destination: Path) -> None:
        if destination.name != "a":
            raise KeyboardInterrupt
        source.replace(destination)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(staging, "_move", killed)
        replace(folder, {"a": "2", "b": "2"})
    assert contents(folder) == {"a": "2", "b": "1", LAST: "11"}


def test_who_reads_next_finishes_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_replaced(tmp_path, monkeypatch)
    assert read_whole(tmp_path, LAST, lambda: contents(tmp_path)) == {"a": "2", "b": "2", LAST: "22"}
    half_replaced(tmp_path, monkeypatch)
    replace(tmp_path, {"c": "3"}, gone=("a",))
    assert contents(tmp_path) == {"b": "2", "c": "3", LAST: "3"}


def test_who_may_not_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_replaced(tmp_path, monkeypatch)
    monkeypatch.setattr(staging.os, "access", lambda path, mode: False)
    monkeypatch.setattr(staging, "_PATIENCE", 0)
    with pytest.raises(UserError, match="are being replaced"):
        read_whole(tmp_path, LAST, lambda: contents(tmp_path))


def test_who_may_not_write_waits_for_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_replaced(tmp_path, monkeypatch)
    monkeypatch.setattr(staging.os, "access", lambda path, mode: False)
    monkeypatch.setattr(staging.time, "sleep", lambda seconds: replace(tmp_path, {"c": "3"}))
    assert read_whole(tmp_path, LAST, lambda: (tmp_path / "c").read_text()) == "3"


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    """The folder is replaced between the reading of one file and the next."""
    replace(tmp_path, {"a": "1", "b": "1"})
    turns = iter("234")

    def read() -> str:
        first = (tmp_path / "a").read_text()
        for turn in (*turns,):
            replace(tmp_path, {"a": turn, "b": turn})
        return first + (tmp_path / "b").read_text()

    assert read_whole(tmp_path, LAST, read) == "44"


def test_an_error_of_what_was_replaced_meanwhile_is_no_error(tmp_path: Path) -> None:
    replace(tmp_path, {"a": "1"})
    tried = []

    def read() -> str:
        tried.append(1)
        if len(tried) == 1:
            replace(tmp_path, {"b": "2"}, gone=("a",))
        return (tmp_path / ("a" if len(tried) == 1 else "b")).read_text()

    assert read_whole(tmp_path, LAST, read) == "2"
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path, LAST, lambda: (tmp_path / "a").read_text())


def test_the_plan_says_what_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what has a successor: a second process that finishes would remove the newer file."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        replace(tmp_path, {"a": "1", "b": "1"})
        patched.setattr(staging, "_put_in_place", lambda folder: (folder / LAST).read_text() == "11" and stop(folder))
        replace(tmp_path, {"a": "2"}, gone=("a", "b"))


def stop(folder: Path) -> None:
    if (folder / ".ksm-hw-ready").exists():
        assert json.loads((folder / ".ksm-hw-ready" / "plan").read_text()) == {"gone": ["b"], "last": LAST}
        raise KeyboardInterrupt


@pytest.mark.parametrize("gone", ["../precious", "{elsewhere}/precious", "link/precious", "\0"])
def test_a_plan_of_somebody_else_removes_nothing_elsewhere(tmp_path: Path, gone: str) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (tmp_path / "precious", elsewhere / "precious"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (folder / ".ksm-hw-ready" / "files").mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    plan = {"gone": [gone.format(elsewhere=elsewhere)], "last": LAST}
    (folder / ".ksm-hw-ready" / "plan").write_text(json.dumps(plan))
    with pytest.raises(UserError, match="outside of its folder"):
        read_whole(folder, LAST, lambda: contents(folder))
    (folder / ".ksm-hw-ready" / "plan").write_text("{")
    with pytest.raises(UserError, match="plan is damaged"):
        read_whole(folder, LAST, lambda: contents(folder))
    assert (tmp_path / "precious").exists() and (elsewhere / "precious").exists()
