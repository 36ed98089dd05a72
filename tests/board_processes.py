"""Starting the real tracker and real board servers for tests: on this machine, or on the emulated arm64 board."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksm_hw.boards.reaching import known_boards
from ksm_hw.errors import UserError

EMULATED_PYTHON = Path(__file__).parent.parent / "build" / "emulated-board" / "python"
COMMAND = [sys.executable, "-m", "ksm_hw.cli", "board"]
START_SECONDS = 180  # An emulated board on a busy machine takes a while to import NumPy.

needs_emulated_board = pytest.mark.skipif(
    not EMULATED_PYTHON.exists(), reason="there is no emulated arm64 board; `make emulated-board` makes it (as root)"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, all of which ends with the block."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


@contextlib.contextmanager
def tracker(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a running tracker."""
    address = ("127.0.0.1", free_port())
    with running([*COMMAND, "tracker", "--port", str(address[1])], folder / "tracker.log"):
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                known_boards(address)
                break
            except UserError:
                assert time.monotonic() < end, (folder / "tracker.log").read_text()
                time.sleep(0.3)
        yield address


@contextlib.contextmanager
def board(
    tracker: tuple[str, int], key: str, folder: Path, emulated: bool = True, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """A board's server that has told the tracker of itself."""
    python = [str(EMULATED_PYTHON), "-m", "ksm_hw.cli", "board"] if emulated else COMMAND
    options = ["--tracker", f"{tracker[0]}:{tracker[1]}", "--key", key, "--port", str(free_port())]
    command = [*python, "serve", *options, "--cache", str(folder / f"{key}-cache")]
    with running(command, folder / f"{key}.log", environment) as process:
        wait_for_board(tracker, key, folder / f"{key}.log")
        yield process


def wait_for_board(tracker: tuple[str, int], key: str, log: Path) -> None:
    """Waits until a tracker knows a free board of a key."""
    end = time.monotonic() + START_SECONDS
    while not any(known.key == key and known.free for known in known_boards(tracker)):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.3)
