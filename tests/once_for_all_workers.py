"""Folders that the workers of one test run share: the first that asks makes one, the others wait for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def folder_of_the_run(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of all workers of this run."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, read only. `make` writes it whole or fails: what it left half-written would be taken."""
    folder = folder_of_the_run(factory) / name
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            make(folder)
    return folder
