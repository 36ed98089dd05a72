"""Opening an artifact's session, wherever it runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ksm_hw.boards.address import BoardAddress
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.local_session import local_session


@contextlib.contextmanager
def open_session(artifact: Path, board: BoardAddress | None = None, threads: int | None = None) -> Iterator[AnySession]:
    """An artifact's session, on a board or on this machine.

    Raises:
        UserError: as `local_session`, `connected_board` and `Board.load`.
    """
    if board is None:
        with local_session(artifact, threads) as session:
            yield session
        return
    from ksm_hw.boards.board import connected_board

    with connected_board(board) as connected:
        yield connected.load(artifact, threads)
