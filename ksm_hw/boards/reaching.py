"""Finding a board and connecting to it: through a tracker, or by its own address."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ksm_hw.boards.address import BoardAddress
from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

WAIT = 60.0  # Seconds that a busy board may take to become free.


@dataclass(frozen=True)
class KnownBoard:
    """A board that a tracker knows: its key, its address, and whether it is free."""

    key: str
    address: str
    free: bool


def known_boards(tracker: tuple[str, int]) -> list[KnownBoard]:
    """The boards that a tracker knows.

    Raises:
        UserError: nothing answers there, or no tracker.
    """
    return _boards(_connect_tracker(tracker))


def _boards(tracker: Any) -> list[KnownBoard]:
    summary = tracker.summary()
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


def reach(address: BoardAddress, wait: float = WAIT) -> Any:
    """A connection of TVM's to a board, which belongs to the caller until it is closed.

    Args:
        address: where the board is.
        wait: seconds to wait for it while others use it.

    Raises:
        UserError: there is no such board, or it stays busy.
    """
    _log.info("board %s", address)
    return _requested(address, wait) if address.tracker else _dialled(address, wait)


def _requested(address: BoardAddress, wait: float) -> Any:
    assert address.tracker is not None
    tracker = _connect_tracker(address.tracker)
    end = time.monotonic() + wait
    while True:
        boards = _boards(tracker)
        named = [board for board in boards if board.key == address.key]
        if not named:
            keys = sorted({board.key for board in boards})
            raise UserError(
                f"The tracker at {address.tracker[0]}:{address.tracker[1]} knows no board '{address.key}'. "
                + (f"It knows: {', '.join(keys)}." if keys else "It knows none. Start one: ksm-hw board serve")
            )
        _log.info("of %d boards '%s', %d are free", len(named), address.key, sum(board.free for board in named))
        if any(board.free for board in named):
            return within(lambda: tracker.request(address.key), wait, lambda: _busy(address, wait))
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
        return within(lambda: rpc.connect(host, port, address.key), wait, lambda: _busy(address, wait))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"The board at {host}:{port} does not go by the key '{address.key}'. Give its own with --key."
        ) from error


def _busy(address: BoardAddress, wait: float) -> UserError:
    return UserError(f"Board {address} was busy for {wait:.0f} s: another session uses it. Try again later.")


def within(function: Callable[[], Any], seconds: float, late: Callable[[], UserError]) -> Any:
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
