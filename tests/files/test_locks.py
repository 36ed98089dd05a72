"""Locks among processes: who waits says for whom, and a killed holder leaves none."""

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from tiny_tasks import TENSORS, tiny_pack

from ksm_hw.files.locks import FOLDER_LOCK, locked, locked_folder
from ksm_hw.masks.bundle import add_task, load_bundle

HOLDER = """
import pathlib, sys
from ksm_hw.files.locks import locked_folder
with locked_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of a folder until it reads a line."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_names_the_other_process(
    holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert holder.stdin is not None
    mode = (tmp_path / FOLDER_LOCK).stat().st_mode
    threading.Timer(0.3, lambda: holder.communicate("\n")).start()
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path):
        assert holder.wait() == 0, "the other was done before"
    assert stat.S_IMODE(mode) == 0o666, "users who share the folder share the lock"
    assert f"Waiting for process {holder.pid} (-c {tmp_path})" in caplog.text and str(tmp_path) in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_no_text_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ksm-hw", "train", "\udcff.jpg"])
    with locked_folder(tmp_path):
        assert (tmp_path / FOLDER_LOCK).read_text() == f"{os.getpid()} ksm-hw train \\udcff.jpg"
        done: list[str] = []

        def wait() -> None:
            with locked_folder(tmp_path):
                done.append("waited")

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        assert done == [], "threads wait for each other, too"
    thread.join()
    assert done == ["waited"] and "(ksm-hw train \\udcff.jpg)" in caplog.text


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_the_wait(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), locked_folder(tmp_path):
        pytest.fail("the lock was not held")
    assert (tmp_path / FOLDER_LOCK).exists(), "it is the other's still"


def test_a_killed_holder_leaves_no_lock(
    holder: "subprocess.Popen[str]", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / FOLDER_LOCK).exists()
    with locked_folder(tmp_path):
        pass
    assert caplog.text == "" and os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_told_and_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def acquire(self: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with locked(tmp_path / "lock"):
        pass
    assert "knows no locks" in caplog.text


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Does the work in so many processes at once; each must end well."""
    processes = []
    for number in range(count):
        process = os.fork()
        if process == 0:
            try:
                work(number)
                os._exit(0)
            except BaseException:
                os._exit(1)
        processes.append(process)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * count


def test_tasks_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    """Each process adds tasks to a bundle that none of them finds there; one reads it all the time."""
    folder = tmp_path / "bundle"

    def work(number: int) -> None:
        if number == 0:
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                if (folder / "bundle.json").exists():
                    load_bundle(folder)
            return
        for turn in range(3):
            add_task(folder, tiny_pack(f"task-{number}-{turn}"), TENSORS)

    in_processes(4, work)
    assert len(load_bundle(folder).packs) == 9
    assert set(os.listdir(folder)) == {"bundle.json", "backbone.safetensors", "tasks"}
