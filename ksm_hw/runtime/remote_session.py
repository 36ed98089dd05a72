"""Sessions in other processes, on this machine or on a board, that look like one in this process."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ksm_hw.artifact.manifest import Manifest
    from ksm_hw.masks.task_pack import TaskPack


class Connection(Protocol):
    """What a session is asked through."""

    def call(self, function: str, /, *arguments: Any) -> Any:
        """Calls one of the functions of the other side."""

    def run(self, images: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """The logits of a batch."""


class RemoteSession:
    """An artifact loaded elsewhere: what `Session` is in this process, for one thread."""

    def __init__(self, connection: Connection, folder: Path, manifest: "Manifest", task: str) -> None:
        from ksm_hw.masks.bundle import load_bundle

        self.manifest = manifest
        self.packs: dict[str, TaskPack] = dict(load_bundle(folder).packs)
        self.task = task
        self._connection = connection

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks."""
        return list(self.packs)

    def switch(self, task: str) -> float:
        """Makes a task the current one and returns the seconds that it took there."""
        seconds: float = self._connection.call("switch", task)
        self.task = task
        return seconds

    def run(self, images: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """Runs a batch and returns the logits, float32 [N, classes of the task]."""
        return self._connection.run(images)

    def run_all(self, images: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """The current task's logits of any number of images, float32 [M, classes]."""
        from ksm_hw.runtime.session import run_in_batches

        return run_in_batches(self.run, images, self.manifest.input_shape[0])
