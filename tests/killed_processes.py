"""Processes that are killed at each system call that writes, by strace."""

import collections
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# What changes a file system; `openat` does where it makes a file.
_WRITING = (
    "openat,write,pwrite64,writev,sendfile,copy_file_range,ftruncate,chmod,fchmod,fchmodat,chown,"
    "mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir"
)


def killed_at_each_write(work: Callable[[], None], prepare: Callable[[], None], check: Callable[[], None]) -> int:
    """Does `work` in a process that is killed at its first system call that writes, again at its second, and so on.

    Args:
        work: what is killed.
        prepare: called before each time.
        check: called after each kill.

    Returns:
        How many times it was killed.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is missing: sudo apt-get install strace")
    prepare()
    work()  # What it imports is imported here, and not each time.
    prepare()
    calls = _writing_calls(work)
    for name, number in calls:
        prepare()
        status = _traced(
            work, "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"
        )
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{name} {number} was not reached"
        check()
    return len(calls)


def _writing_calls(work: Callable[[], None]) -> list[tuple[str, int]]:
    """The system calls that write: the name of each, and its number among those of the name."""
    with tempfile.NamedTemporaryFile("r") as record:
        assert _traced(work, "-o", record.name, "-e", f"trace={_WRITING}") == 0, "the work failed by itself"
        counts: collections.Counter[str] = collections.Counter()
        calls = []
        for line in record:
            if found := re.match(r"(\w+)\(", line):
                counts[found[1]] += 1
                if found[1] != "openat" or "O_CREAT" in line or "O_TRUNC" in line:
                    calls.append((found[1], counts[found[1]]))
        return calls


def _traced(work: Callable[[], None], *options: str) -> int:
    """Does the work in a process that strace looks at; returns how it ended, as `os.waitpid` does."""
    process = os.fork()
    if process == 0:
        try:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.waitpid(process, os.WUNTRACED)
    strace = subprocess.Popen(["strace", "-qq", *options, "-p", str(process)], stderr=subprocess.PIPE)
    try:
        _wait_until_traced(process, strace)
        os.kill(process, signal.SIGCONT)
        return os.waitpid(process, 0)[1]
    except BaseException:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise
    finally:
        strace.communicate()


def _wait_until_traced(process: int, strace: "subprocess.Popen[bytes]") -> None:
    while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
        if strace.poll() is not None:
            assert strace.stderr is not None
            pytest.skip(f"strace may not look into processes here: {strace.stderr.read().decode().strip()}")
        time.sleep(0.001)
