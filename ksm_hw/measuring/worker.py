"""The process that measures an artifact; see `child_process.py`.

load     artifact, threads    facts of the loaded artifact (`session.load_measured`)
measure  request              what `session.measure` gives for its `command` and arguments
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm_hw.runtime.child_process import ParentProcess
from ksm_hw.runtime.tvm_import import hide_torch

if TYPE_CHECKING:
    from ksm_hw.runtime.device_session import DeviceSession


class _Worker:
    """The commands, and the session that they share."""

    session: "DeviceSession"

    def load(self, artifact: str, threads: int | None) -> dict[str, Any]:
        from ksm_hw.measuring.session import load_measured

        self.session, facts = load_measured(Path(artifact), threads)
        return facts

    def measure(self, request: dict[str, Any]) -> Any:
        from ksm_hw.measuring.session import measure

        return measure(self.session, **request)


if __name__ == "__main__":
    hide_torch()  # As the compiler's, its memory would count as the runtime's.
    worker = _Worker()
    ParentProcess().serve({"load": worker.load, "measure": worker.measure})
