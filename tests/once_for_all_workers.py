"""Folders that the workers of one test run share: the first that asks makes one, the others wait for it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def folder_of_the_run(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of all workers of this run."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, read only. `make` writes it; where that fails, the next that asks tries again."""
    folder = folder_of_the_run(factory) / name
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent)) / name
            make(unfinished)
            unfinished.rename(folder)
    return folder
