"""ksm-hw, untuned, tuned, through Relay and in int8: the artifacts that `preparation.compile_artifact` wrote."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksm_hw import __version__
from ksm_hw.runtime.tvm_import import hide_torch
from peers.serve import Run

_SESSIONS = {
    "relax": ("ksm_hw.runtime.session", "Session"),
    "relay": ("ksm_hw.runtime.relay.session", "RelaySession"),
}


def version() -> str:
    """Its release."""
    return __version__


def import_runtime(variant: str) -> Any:
    """The class of sessions; imports what `load` would, without the torch that lies in the same environment."""
    hide_torch()
    module, session = _SESSIONS["relay" if variant == "relay" else "relax"]
    return getattr(importlib.import_module(module), session)


def load(folder: Path, threads: int, variant: str) -> Run:
    """A session of the artifact of that many threads."""
    session = import_runtime(variant).load(artifact_folder(folder.parent, threads, variant), threads=threads)
    run: Run = session.run
    return run


def task_switcher(network: Path, tasks: int, threads: int, variant: str) -> Callable[[Path], Run]:
    """A session of many tasks, and how to switch it to the task of a folder."""
    session = import_runtime(variant).load(artifact_folder(network, threads, variant, tasks), threads=threads)

    def switch(folder: Path) -> Run:
        session.switch(folder.name)
        run: Run = session.run
        return run

    return switch


def artifact_folder(network: Path, threads: int, variant: str, tasks: int = 1) -> Path:
    """Where the artifact of a network is."""
    return network / f"ksm-hw-{variant}-{threads}-threads-{tasks}-tasks"
