"""ksm-hw, untuned and tuned: the artifact that `preparation.compile_artifact` wrote."""

from pathlib import Path

from ksm_hw import __version__
from ksm_hw.runtime.without_torch import hide_torch
from peers.serve import Run


def version() -> str:
    """Its release."""
    return __version__


def load(folder: Path, threads: int, variant: str) -> Run:
    """A session of the artifact of that many threads."""
    hide_torch()
    from ksm_hw.runtime.session import Session

    return Session.load(artifact_folder(folder.parent, threads, variant), threads=threads).run


def artifact_folder(network: Path, threads: int, variant: str) -> Path:
    """Where the artifact of a network is."""
    return network / f"ksm-hw-{variant}-{threads}"
