"""A written file: through links, into what is no file, with its mode; and what is told before."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.files import written
from ksm_hw.files.written import check_file, check_folder, written_file


def write(path: Path, text: str = "newer") -> None:
    check_file(path)
    with written_file(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path: Path, is_there: bool) -> None:
    target, link = tmp_path / "elsewhere" / "page.html", tmp_path / "page.html"
    target.parent.mkdir()
    if is_there:
        target.write_text("older")
    link.symlink_to("elsewhere/page.html")
    write(link)
    assert link.is_symlink() and target.read_text() == "newer"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_a_loop_of_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="Too many levels"):
        write(tmp_path / "a")


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "page.html"
    path.write_text("older")
    path.chmod(mode)
    write(path)
    write(tmp_path / "new.html")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (tmp_path / "new.html").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_and_a_device_get_the_content(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert got == ["newer"] and stat.S_ISFIFO(pipe.stat().st_mode)
    write(Path("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_is_a_file_gets_it_in_its_turn(tmp_path: Path, name: str) -> None:
    script = f"""
import pathlib
from ksm_hw.files.written import check_file, written_file
print("before")
check_file(pathlib.Path({name!r}))
with written_file(pathlib.Path({name!r})) as temporary:
    temporary.write_text("page\\n")
print("behind")
"""
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\npage\nbehind\n"


def test_a_file_on_which_something_is_mounted_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("older, and longer than the newer")
    number = path.stat().st_ino

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    write(path)
    assert path.read_text() == "newer" and path.stat().st_ino == number
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_file_that_cannot_be_written_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    cases = {
        "/proc/page.html": "No such file",
        "/dev/fd/page.html": "",
        tmp_path: "It is a folder",
        tmp_path / "file" / "page.html": "Not a directory",
        tmp_path / ("n" * 300): "File name too long",
        tmp_path / "new" / ("n" * 300): "File name too long",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=f"Cannot write .*{message}"):
            check_file(Path(path))
    with pytest.raises(UserError, match="Not a directory"):
        check_folder(tmp_path / "file" / "folder")
    # root may write everywhere, so that nobody's rights can be tried.
    monkeypatch.setattr(written.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="Permission denied"):
        check_file(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"], "a check leaves nothing"


def test_a_full_disk_is_told_before() -> None:
    assert os.path.exists("/dev/full")
    with pytest.raises(UserError, match="No space left on device"), written_file(Path("/dev/full")) as temporary:
        temporary.write_text("newer")
