"""Where a board is: its key at a tracker, or its own address."""

import re
from dataclasses import dataclass

from ksm_hw.errors import UserError

DEFAULT_KEY = "board"  # Of a server that was started without a tracker.


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


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as a pair.

    Raises:
        UserError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise UserError(f"'{text}' is no address. Give HOST:PORT, such as 127.0.0.1:9190; ports go from 1 to 65535.")
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
