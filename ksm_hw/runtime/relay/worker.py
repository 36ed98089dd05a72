"""The process in Relay's environment that runs what was compiled; see `child_process.py`.

load    artifact, threads                          the first task's name
switch  task                                       seconds
run     images: float32 [N, 3, H, W]               logits: float32 [N, classes]
time    library, tensors, limit, threads, cores    seconds or an error (`time_library.time_library`)
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.child_process import ParentProcess
from ksm_hw.runtime.tvm_import import hide_torch


class _Worker:
    """The commands, and the session that they share."""

    session: AnySession

    def load(self, artifact: str, threads: int | None) -> str:
        from ksm_hw.runtime.relay.session import RelaySession

        self.session = RelaySession.load(Path(artifact), threads=threads)
        return self.session.task

    def switch(self, task: str) -> float:
        return self.session.switch(task)

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.session.run(images)

    def time(
        self, library: str, tensors: list[tuple[str, list[int]]], limit: float, threads: int, cores: list[int]
    ) -> dict[str, Any]:
        from ksm_hw.runtime.relay.time_library import time_library

        return time_library(library, tensors, limit, threads, cores)


if __name__ == "__main__":
    hide_torch()
    worker = _Worker()
    ParentProcess().serve({"load": worker.load, "switch": worker.switch, "run": worker.run, "time": worker.time})
