"""Where caches and data lie: by the XDG specification, and in a temporary folder where a home is of no use."""

import logging
import pwd
import tempfile
from pathlib import Path

import pytest

from ksm_hw import user_folders
from ksm_hw.errors import UserError
from ksm_hw.user_folders import cache_folder, data_folder, provide_home


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variables, a temporary folder of our own, and nothing decided before; the temporary folder."""
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for decided in (user_folders._in_place_of, user_folders._temporary_folder):
        decided.cache_clear()
    return tmp_path / f"ksm-hw-{user_folders.os.getuid()}"


def test_the_specification_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("a") == tmp_path / "home/.cache/ksm-hw/a"
    assert data_folder("a") == tmp_path / "home/.local/share/ksm-hw/a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("a") == tmp_path / "cache/ksm-hw/a"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder("a") == tmp_path / "home/.cache/ksm-hw/a"
    assert not (tmp_path / "home").exists(), "a folder is made by who writes to it"


@pytest.mark.parametrize("home", ["a file", "/dev/null", "a dangling link"])
def test_a_home_that_cannot_be_written(
    home: str, nothing_known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "a dangling link").symlink_to("nowhere")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    with caplog.at_level(logging.WARNING):
        assert cache_folder("a") == nothing_known / "cache/a" and cache_folder("b") == nothing_known / "cache/b"
        assert data_folder("a") == nothing_known / "data/a"
    assert nothing_known.stat().st_mode & 0o777 == 0o700
    assert [str(nothing_known / kind) in caplog.text for kind in ("cache", "data")] == [True, True]
    assert len(caplog.records) == 2, "it is said once"


def test_data_that_is_there_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/.local/share/ksm-hw/installed").mkdir(parents=True)
    monkeypatch.setattr(user_folders.os, "access", lambda *_: False)
    assert data_folder("installed") == tmp_path / "home/.local/share/ksm-hw/installed"


@pytest.mark.parametrize("home", [None, "", "relative"])
@pytest.mark.parametrize("known", [False, True])
def test_without_a_home(
    home: str | None,
    known: bool,
    nothing_known: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def entry(_number: int) -> pwd.struct_passwd:
        if not known:
            raise KeyError("no such user")
        return pwd.struct_passwd(("me", "x", 1, 1, "", str(tmp_path / "mine"), "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwuid", entry)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    provide_home()
    assert ("has no home" in caplog.text) == (not known)
    assert Path.home() == (tmp_path / "mine" if known else nothing_known)
    assert cache_folder("a") == Path.home() / ".cache/ksm-hw/a"


def test_a_temporary_folder_of_others_is_not_trusted(nothing_known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_known.mkdir(mode=0o777)
    nothing_known.chmod(0o777)
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(UserError, match="belongs to others"):
        cache_folder("a")


def test_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(UserError, match="Set HOME or TMPDIR"):
        cache_folder("a")
