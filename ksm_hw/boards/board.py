"""The desk's side of a board: handing it artifacts, and sessions that run there.

with connected_board(BoardAddress(tracker=("127.0.0.1", 9190), key="rpi4")) as board:
    session = board.load("artifact")
    session.switch("cars")
    logits = session.run(images)
"""

import contextlib
import functools
import gc
import json
import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm_hw import __version__
from ksm_hw.artifact.manifest import listed_files, read_manifest
from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.protocol import VERSION, function_name, kept_name, result_of
from ksm_hw.boards.reaching import WAIT, reach, within
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import describe_tasks
from ksm_hw.measuring.process import Measured
from ksm_hw.runtime.remote_session import RemoteSession

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger(__name__)

PATIENCE = 600.0  # Seconds that a board may take for one answer.

_abandoned: list[Any] = []  # Connections with a call that has not come back.


@contextlib.contextmanager
def connected_board(address: BoardAddress, wait: float = WAIT, patience: float = PATIENCE) -> "Iterator[Board]":
    """A session's connection to a board, which is free again afterwards, whatever happens.

    Args:
        address: where it is.
        wait: seconds to wait for it while others use it.
        patience: seconds that it may take for one answer.

    Raises:
        UserError: there is no such board, it stays busy, or it is no server of this `ksm-hw board serve`.
    """
    board = Board(address, reach(address, wait), patience)
    try:
        board.check()
        yield board
    finally:
        board.close()


class Board:
    """A connected board. Made by `connected_board`."""

    def __init__(self, address: BoardAddress, remote: Any, patience: float) -> None:
        self.address = address
        self._remote = remote
        self._patience = patience
        self._waiting = False

    def check(self) -> None:
        """Asks whether the board's server has our functions, and they are those that we know.

        Raises:
            UserError: it has not, or ksm-hw there is too old or too new for that here.
        """
        try:
            version, release = self.call("version")
        except AttributeError as error:
            raise UserError(
                f"Board {self.address} runs a TVM server without ksm-hw's part, or an older ksm-hw than the "
                f"{__version__} here. Install this one there, and start it with `ksm-hw board serve`."
            ) from error
        if version != VERSION:
            raise UserError(
                f"Board {self.address} runs ksm-hw {release}, which speaks version {version} of the boards' protocol; "
                f"ksm-hw {__version__} here speaks version {VERSION}. Install the same ksm-hw on the board, and start "
                "`ksm-hw board serve` again."
            )
        self.call("last_crash")  # Forgets that of an earlier session.

    def close(self) -> None:
        """Frees the board."""
        remote, self._remote = self._remote, None
        if self._waiting:
            # A call still runs in its thread, and TVM's connections take one call at a time: even the end of this one
            # has to wait for the end of the process.
            _abandoned.append(remote)
        elif remote is not None:
            with contextlib.suppress(Exception):  # The board may be gone.
                within(remote.get_function("CloseRPCConnection"), 5, lambda: UserError(""))
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
        task = self.call("load", self._send(folder), threads or 0)
        return RemoteSession(self, manifest, describe_tasks(folder), task)

    @contextlib.contextmanager
    def measuring_process(self, artifact: Path, threads: int | None = None) -> Iterator[Measured]:
        """Loads an artifact in a process of its own on the board; see `measuring_process`."""
        read_manifest(artifact)
        number, facts = self.call("measure_load", self._send(artifact), threads or 0)
        yield Measured(facts, lambda request: self.call("measure", number, json.dumps(request)))

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
        names = {kept_name(name, entry.sha256): name for name, entry in listed_files(text).items()}
        missing = self.call("missing", json.dumps(list(names)))
        _log.info("board %s keeps %d of the artifact's %d files", self.address, len(names) - len(missing), len(names))
        for name in missing:
            _log.debug("%s is sent, %d bytes", names[name], (folder / names[name]).stat().st_size)
            content = bytearray((folder / names[name]).read_bytes())
            self._guarded(functools.partial(self._remote.upload, content, name))
            self.call("keep", name)
        return text

    def call(self, function: str, /, *arguments: Any) -> Any:
        """Calls one of the functions of `protocol.py`; arrays, both ways, are tensors there.

        Raises:
            UserError: what the board says, or it is gone.
        """
        answer = self._guarded(lambda: self._called(function, *arguments))
        if not isinstance(answer, str):
            return answer
        try:
            return result_of(answer)
        except UserError as error:
            raise UserError(f"Board {self.address}: {error}") from None

    def _called(self, function: str, *arguments: Any) -> "str | npt.NDArray[np.float32]":
        import numpy as np
        import tvm

        sent = (
            tvm.runtime.tensor(argument, self._remote.cpu()) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        )
        answer = self._remote.get_function(function_name(function))(*sent)
        return answer if isinstance(answer, str) else answer.numpy()

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
            return within(call, self._patience, late)
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
            remote = reach(address, wait=3)
            text = result_of(within(remote.get_function(function_name("last_crash")), 5, lambda: UserError("")))
        except Exception:
            time.sleep(0.5)
            continue
        found = re.search(r"error code -(\d+)", text)
        return int(found[1]) if found else None
    return None
