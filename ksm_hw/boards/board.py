"""The desk's side of a board: finding it, handing it artifacts, and sessions that run there.

with connected_board(BoardAddress(tracker=("127.0.0.1", 9190), key="rpi4")) as board:
    session = board.load("artifact")
    session.switch("cars")
    logits = session.run(images)
"""

import contextlib
import functools
import gc
import json
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm_hw.artifact.manifest import checked_files, read_manifest
from ksm_hw.boards.server import kept_name
from ksm_hw.errors import UserError
from ksm_hw.runtime.remote_session import RemoteSession

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEFAULT_KEY = "board"  # Of a server that was started without a tracker.
PATIENCE = 600.0  # Seconds that a board may take for one answer.
WAIT = 60.0  # Seconds that a busy board may take to become free.

_abandoned: list[Any] = []  # Connections with a call that has not come back.


@dataclass(frozen=True)
class BoardAddress:
    """Where a board is: its key at a tracker, or its own address.

    Attributes:
        tracker: host and port of a tracker; or None, and then
        host: host and port of the board's server.
        key: what the board calls itself.
    """

    tracker: tuple[str, int] | None = None
    host: tuple[str, int] | None = None
    key: str = DEFAULT_KEY

    def __str__(self) -> str:
        place = self.tracker or self.host
        assert place is not None
        return f"'{self.key}' at {'tracker ' if self.tracker else ''}{place[0]}:{place[1]}"


@dataclass(frozen=True)
class KnownBoard:
    """A board that a tracker knows: its key, its address, and whether it is free."""

    key: str
    address: str
    free: bool


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair.

    Raises:
        UserError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UserError(f"'{text}' is no address. Give HOST:PORT, such as 127.0.0.1:9190.")
    return host.strip("[]"), int(port)


def board_address(tracker: str | None, key: str | None, host: str | None) -> BoardAddress | None:
    """The board that a command line names; None for this machine.

    Raises:
        UserError: the options contradict each other or lack a part.
    """
    if tracker is not None and host is not None:
        raise UserError("Give --tracker and --key, or --host for one board, not both.")
    if tracker is not None:
        if key is None:
            raise UserError("--tracker needs --key, the name of the board: `ksm-hw board list` shows them.")
        return BoardAddress(tracker=parse_address(tracker), key=key)
    if host is not None:
        return BoardAddress(host=parse_address(host), key=key or DEFAULT_KEY)
    if key is not None:
        raise UserError("--key names a board at a tracker: give --tracker HOST:PORT too.")
    return None


def known_boards(tracker: tuple[str, int]) -> list[KnownBoard]:
    """The boards that a tracker knows.

    Raises:
        UserError: nothing answers there, or no tracker.
    """
    return _boards(_summary(_connect_tracker(tracker)))


def _boards(summary: dict[str, Any]) -> list[KnownBoard]:
    free = {key: entry["free"] for key, entry in summary["queue_info"].items()}
    boards = []
    for server in summary["server_info"]:
        key = server["key"].removeprefix("server:")
        # The tracker counts the free boards of a key and does not say which of them they are.
        free[key] = free.get(key, 0) - 1
        boards.append(KnownBoard(key, ":".join(map(str, server["addr"])), free[key] >= 0))
    return boards


def _connect_tracker(tracker: tuple[str, int]) -> Any:
    import socket

    from tvm.rpc.client import TrackerSession

    place = f"{tracker[0]}:{tracker[1]}"
    try:
        # TVM tries for a minute where nobody listens.
        socket.create_connection(tracker, timeout=5).close()
        return TrackerSession(tracker)
    except OSError as error:
        raise UserError(
            f"No tracker answers at {place} ({error.strerror or error}). Start one: ksm-hw board tracker"
        ) from error
    except RuntimeError as error:
        raise UserError(f"What answers at {place} is no TVM tracker.") from error


def _summary(tracker: Any) -> dict[str, Any]:
    summary: dict[str, Any] = tracker.summary()
    return summary


@contextlib.contextmanager
def connected_board(address: BoardAddress, wait: float = WAIT, patience: float = PATIENCE) -> "Iterator[Board]":
    """A session's connection to a board, which is free again afterwards, whatever happens.

    Args:
        address: where it is.
        wait: seconds to wait for it while others use it.
        patience: seconds that it may take for one answer.

    Raises:
        UserError: there is no such board, it stays busy, or it is no server of `ksm-hw board serve`.
    """
    remote = _requested(address, wait) if address.tracker else _dialled(address, wait)
    board = Board(address, remote, patience)
    try:
        board.check()
        yield board
    finally:
        board.close()


def _requested(address: BoardAddress, wait: float) -> Any:
    assert address.tracker is not None
    tracker = _connect_tracker(address.tracker)
    end = time.monotonic() + wait
    while True:
        boards = _boards(_summary(tracker))
        named = [board for board in boards if board.key == address.key]
        if not named:
            keys = sorted({board.key for board in boards})
            raise UserError(
                f"The tracker at {address.tracker[0]}:{address.tracker[1]} knows no board '{address.key}'. "
                + (f"It knows: {', '.join(keys)}." if keys else "It knows none. Start one: ksm-hw board serve")
            )
        if any(board.free for board in named):
            return _within(lambda: tracker.request(address.key), wait, lambda: _busy(address, wait))
        if time.monotonic() >= end:
            raise _busy(address, wait)
        time.sleep(0.2)


def _dialled(address: BoardAddress, wait: float) -> Any:
    import socket

    from tvm import rpc

    assert address.host is not None
    host, port = address.host
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"No board answers at {host}:{port} ({error.strerror or error}). Start it: ksm-hw board serve"
        ) from error
    try:
        return _within(lambda: rpc.connect(host, port, address.key), wait, lambda: _busy(address, wait))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"The board at {host}:{port} does not go by the key '{address.key}'. Give its own with --key."
        ) from error


def _busy(address: BoardAddress, wait: float) -> UserError:
    return UserError(f"Board {address} was busy for {wait:.0f} s: another session uses it. Try again later.")


def _within(function: Callable[[], Any], seconds: float, late: Callable[[], UserError]) -> Any:
    """What a function returns, unless it takes too long.

    It runs in a thread of its own, for TVM's calls cannot be stopped: not by a deadline, not by Ctrl-C.
    """
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((True, function()))
        except BaseException as error:
            outcome.put((False, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        succeeded, result = outcome.get(timeout=seconds)
    except queue.Empty:
        raise late() from None
    if not succeeded:
        raise result
    return result


class Board:
    """A connected board. Made by `connected_board`."""

    def __init__(self, address: BoardAddress, remote: Any, patience: float) -> None:
        self.address = address
        self._remote = remote
        self._patience = patience
        self._waiting = False

    def check(self) -> None:
        """Asks whether the board's server has our functions.

        Raises:
            UserError: it has not.
        """
        try:
            self.call("last_crash")
        except AttributeError as error:
            raise UserError(
                f"Board {self.address} runs a TVM server without ksm-hw's part. Start it with `ksm-hw board serve`."
            ) from error

    def close(self) -> None:
        """Frees the board."""
        remote, self._remote = self._remote, None
        if self._waiting:
            # A call still runs in its thread, and TVM's connections take one call at a time: even the end of this one
            # has to wait for the end of the process.
            _abandoned.append(remote)
        elif remote is not None:
            with contextlib.suppress(Exception):  # The board may be gone.
                _within(remote.get_function("CloseRPCConnection"), 5, lambda: UserError(""))
        del remote
        # The session ends when nothing refers to it, and tensors that do may hang in cycles.
        gc.collect()

    def load(self, artifact: str | Path, threads: int | None = None) -> RemoteSession:
        """Loads an artifact on the board; what it already keeps of it is not sent again.

        Raises:
            UserError: the artifact is damaged, the board cannot run it, is full, or is gone.
        """
        folder = Path(artifact)
        manifest = read_manifest(folder)
        task = self.call("load", self._send(folder), threads or 0)["task"]
        return RemoteSession(self, folder, manifest, task)

    @contextlib.contextmanager
    def measuring_process(self, artifact: Path, threads: int | None = None) -> "Iterator[BoardMeasurement]":
        """Loads an artifact in a process of its own on the board."""
        read_manifest(artifact)
        number, facts = self.call("measure_load", self._send(artifact), threads or 0)
        yield BoardMeasurement(self, number, facts)

    def time_library(self, library: Path, **request: Any) -> dict[str, Any]:
        """`LibraryTimer.time` on the board.

        Raises:
            UserError: the board lacks Relay, or is gone.
        """
        content = bytearray(library.read_bytes())
        self._guarded(functools.partial(self._remote.upload, content, library.name))
        timed: dict[str, Any] = self.call("time_library", library.name, json.dumps(request))
        return timed

    def _send(self, folder: Path) -> str:
        """Sends the files of an artifact that the board lacks; returns the manifest's text."""
        text = (folder / "manifest.json").read_text()
        files = checked_files(json.loads(text)).items()
        names = {kept_name(name, entry["sha256"]): name for name, entry in files}
        for name in self.call("missing", json.dumps(list(names))):
            content = bytearray((folder / names[name]).read_bytes())
            self._guarded(functools.partial(self._remote.upload, content, name))
            self.call("keep", name)
        return text

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls one of `board_server`'s functions that answer in JSON.

        Raises:
            UserError: what the board says, or it is gone.
        """
        answer = json.loads(self._guarded(lambda: self._remote.get_function(f"ksm_hw.board.{function}")(*arguments)))
        if "error" in answer:
            raise UserError(f"Board {self.address}: {answer['error']}")
        return answer["result"]

    def run(self, images: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """`Session.run` on the board."""
        import tvm

        def remote_run() -> Any:
            sent = tvm.runtime.tensor(images, self._remote.cpu())
            return self._remote.get_function("ksm_hw.board.run")(sent).numpy()

        logits: npt.NDArray[np.float32] = self._guarded(remote_run)
        return logits

    def _guarded(self, function: Callable[[], Any]) -> Any:
        def late() -> UserError:
            return UserError(f"Board {self.address} gave no answer for {self._patience:.0f} s. Is it still there?")

        def call() -> Any:
            try:
                return function()
            finally:
                self._waiting = False

        self._waiting = True
        try:
            return _within(call, self._patience, late)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(self._why_lost(error)) from error

    def _why_lost(self, error: Exception) -> str:
        said = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        self.close()
        # A session that crashed lets its server come back, and that knows how it crashed.
        number = _signal_of_last_crash(self.address)
        if number == signal.SIGILL:
            return (
                f"Board {self.address} met an instruction that its CPU lacks (SIGILL). The artifact was compiled for "
                "another CPU: compile it for the board's own target (`ksm-hw targets`)."
            )
        if number == signal.SIGKILL:
            return f"Board {self.address} killed the session: its memory ran out. Use fewer tasks or a smaller batch."
        if number is not None:
            return f"Board {self.address}: the session crashed ({signal.Signals(number).name}). It said: {said}"
        return (
            f"Board {self.address} is gone: it was switched off, rebooted, or its network failed. It said: {said}. "
            "See `ksm-hw board list`, start it again with `ksm-hw board serve`, and give the same command."
        )


def _signal_of_last_crash(address: BoardAddress) -> int | None:
    """The signal that ended the last session's process; None if the board does not come back to tell, or it ended well.

    Asks for a few seconds, in which the board's server is started again.
    """
    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            remote = _requested(address, 3) if address.tracker else _dialled(address, 3)
            text = json.loads(_within(remote.get_function("ksm_hw.board.last_crash"), 5, lambda: UserError("")))
        except Exception:
            time.sleep(0.5)
            continue
        found = re.search(r"error code -(\d+)", text["result"])
        return int(found[1]) if found else None
    return None


class BoardMeasurement:
    """An artifact loaded in a process of its own on a board; see `measuring_process.Measured`."""

    def __init__(self, board: Board, number: int, facts: dict[str, Any]) -> None:
        self._board, self._number = board, number
        self.facts = facts

    def ask(self, command: str, **arguments: Any) -> Any:
        """One measurement (`measuring.measure`)."""
        return self._board.call("measure", self._number, json.dumps({"command": command, **arguments}))
