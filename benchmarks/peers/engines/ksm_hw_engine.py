"""ksm-hw, untuned and tuned: the artifacts that `preparation.compile_artifact` wrote."""

import importlib
from collections.abc import Callable
from pathlib import Path

from ksm_hw import __version__
from ksm_hw.runtime.without_torch import hide_torch
from peers.serve import Run


def version() -> str:
    """Its release."""
    return __version__


def import_runtime() -> None:
    """Imports what `load` would import, without the torch that lies in the same environment."""
    hide_torch()
    importlib.import_module("ksm_hw.runtime.session")


def load(folder: Path, threads: int, variant: str) -> Run:
    """A session of the artifact of that many threads."""
    import_runtime()
    from ksm_hw.runtime.session import Session

    return Session.load(artifact_folder(folder.parent, threads, variant), threads=threads).run


def task_switcher(network: Path, tasks: int, threads: int, variant: str) -> Callable[[Path], Run]:
    """A session of many tasks, and how to switch it to the task of a folder."""
    from ksm_hw.runtime.session import Session

    session = Session.load(artifact_folder(network, threads, variant, tasks), threads=threads)

    def switch(folder: Path) -> Run:
        session.switch(folder.name)
        return session.run

    return switch


def artifact_folder(network: Path, threads: int, variant: str, tasks: int = 1) -> Path:
    """Where the artifact of a network is."""
    return network / f"ksm-hw-{variant}-{threads}-threads-{tasks}-tasks"
