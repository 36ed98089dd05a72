"""Sessions in other processes, on this machine or on a board, that look like one in this process."""

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ksm_hw.artifact.manifest import Manifest
from ksm_hw.masks.task_pack import TaskDescription
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.forks import check_process


class Connection(Protocol):
    """What a session is asked through."""

    def call(self, command: str, /, *arguments: Any) -> Any:
        """Has the other side do something, and returns what that gives; both may be arrays."""


class RemoteSession(AnySession):
    """An artifact loaded elsewhere. Safe to use from several threads: its connection takes one call at a time."""

    def __init__(
        self, connection: Connection, manifest: Manifest, descriptions: Mapping[str, TaskDescription], task: str
    ) -> None:
        super().__init__(manifest, descriptions, task)
        self._connection = connection
        self._process = os.getpid()
        self._lock = threading.Lock()

    def switch(self, task: str) -> float:
        """See `AnySession`; the seconds are those that it took there."""
        seconds: float = self._call("switch", task)
        self._task = task
        return seconds

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `AnySession`."""
        self.check_images(images)
        logits: npt.NDArray[np.float32] = self._call("run", images)
        return logits

    def _call(self, command: str, *arguments: Any) -> Any:
        check_process(self._process, "A session in another process, or on a board,")
        with self._lock:
            return self._connection.call(command, *arguments)
