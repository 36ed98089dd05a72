"""Measuring libraries of one operator in a process of Relay that stays alive, on the desk or on a board."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.runtime.child_process import ChildProcess
from ksm_hw.runtime.operator_timing import Tensors
from ksm_hw.runtime.relay.process import relay_process

SECONDS = 60.0  # That one library may take.


class LibraryTimer:
    """A context: its process ends with it. A library that crashes it, or takes too long, costs that process only."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._process: ChildProcess | None = None

    def __enter__(self) -> "LibraryTimer":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def time(self, library: Path, tensors: Tensors, limit: float, threads: int, cores: Sequence[int]) -> dict[str, Any]:
        """Measures a library's only function.

        Args:
            library: its file.
            tensors: dtype and shape of the function's arguments, which are filled with random numbers.
            limit: seconds; if it takes longer in a first short measurement, that is all.
            threads: on how many it runs, on which `cores`.

        Returns:
            `seconds` of a run, or why there are none: `error`.

        Raises:
            UserError: Relay is not installed.
        """
        if self._process is None:
            self._process = self._open.enter_context(relay_process())
        try:
            timed: dict[str, Any] = self._process.call(
                "time", str(library), tensors, limit, threads, cores, seconds=SECONDS
            )
            return timed
        except UserError as death:
            self._open.close()
            self._process = None
            return {"error": str(death).partition(":")[0]}
