"""Artifacts measured in processes of their own, wherever these run."""

import contextlib
from collections.abc import Callable, Iterator

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.board import connected_board
from ksm_hw.measuring.process import Measured, measuring_process

# Loads an artifact, on so many threads, in a process that ends with the block.
Measuring = Callable[..., contextlib.AbstractContextManager[Measured]]


@contextlib.contextmanager
def measuring_at(board: BoardAddress | None) -> Iterator[Measuring]:
    """What loads artifacts to be measured, on a board or on this machine: see `measuring_process`.

    Raises:
        UserError: as `connected_board`.
    """
    if board is None:
        yield measuring_process
        return
    with connected_board(board) as connected:
        yield connected.measuring_process
