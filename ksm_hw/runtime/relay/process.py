"""Processes in Relay's environment."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ksm_hw.runtime.child_process import ChildProcess, child_process
from ksm_hw.runtime.relay.environment import process_variables


def relay_process(
    module: str = "ksm_hw.runtime.relay.worker",
    only_runs: bool = True,
    listeners: Mapping[str, Callable[[Any], Any]] | None = None,
) -> AbstractContextManager[ChildProcess]:
    """Starts a process in Relay's environment, which ends with the block.

    Args:
        module: what it runs; without it what runs artifacts.
        only_runs: whether it will run artifacts and compile none.
        listeners: see `child_process`.

    Raises:
        UserError: Relay is not installed.
    """
    return child_process(
        module,
        name="Relay's process",
        advice="TVM 0.19 cannot compile or run this, or the memory ran out. Use --ir relax.",
        variables=process_variables(only_runs),
        listeners=listeners,
    )
