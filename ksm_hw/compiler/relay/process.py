"""The process in Relay's environment that compiles and tunes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ksm_hw.runtime.child_process import ChildProcess
from ksm_hw.runtime.relay.process import relay_process


def compiler_process(
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[dict[str, Any]], None] = lambda progress: None,
    measure: Callable[[dict[str, Any]], dict[str, Any]] = lambda library: {},
) -> AbstractContextManager[ChildProcess]:
    """Starts a process that answers the commands of `worker.py`, and ends with the block.

    Args:
        on_step: called with the name of each step of what the process does.
        on_progress: called with what a tune says of itself after each trial.
        measure: measures a library that a tune built: its `path`, `tensors` and `limit`; gives what `time` does.

    Raises:
        UserError: Relay is not installed.
    """
    listeners: dict[str, Callable[[Any], Any]] = {"step": on_step, "progress": on_progress, "measure": measure}
    return relay_process("ksm_hw.compiler.relay.worker", only_runs=False, listeners=listeners)
