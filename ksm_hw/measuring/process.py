"""Artifacts that are loaded and measured in a process of their own."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.runtime.child_process import child_process


@dataclass(frozen=True)
class Measured:
    """An artifact that was loaded in a process of its own, here or on a board, and can be measured there.

    Attributes:
        facts: see `session.load_measured`.
        measure: takes a `command` and its arguments in one dictionary; see `session.measure`.
    """

    facts: dict[str, Any]
    measure: Callable[[dict[str, Any]], Any]

    def ask(self, command: str, **arguments: Any) -> Any:
        """One measurement."""
        return self.measure({"command": command, **arguments})


@contextlib.contextmanager
def measuring_process(artifact: Path, threads: int | None = None) -> Iterator[Measured]:
    """Loads an artifact in a process of its own, which ends with the block.

    Raises:
        UserError: as `Session.load`, or the process dies.
    """
    variables = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}  # The compiler's memory would count as the runtime's.
    if read_manifest(artifact).ir == "relay":
        from ksm_hw.runtime.relay.environment import process_variables

        variables = process_variables(only_runs=True)
    with child_process(
        "ksm_hw.measuring.worker",
        name=f"The process that measured {artifact}",
        advice="Check the artifact with `ksm-hw verify`.",
        variables=variables,
    ) as process:
        yield Measured(process.call("load", str(artifact), threads), functools.partial(process.call, "measure"))
