"""The neighbour of the benchmark of disturbed cores: it is at work while an engine is measured, or that is said."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from peers.failures import EngineError


@pytest.fixture
def neighbour(monkeypatch: pytest.MonkeyPatch) -> Any:
    # The benchmark sets them, for itself alone.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return importlib.import_module("disturbed_cores").neighbour


def test_it_says_how_it_is_scheduled_when_it_begins(neighbour: Any) -> None:
    core = min(os.sched_getaffinity(0))
    with neighbour("half", core) as called:
        assert called in ("half, in real time", "half, not in real time")
    with neighbour("", core) as called:
        assert called == "none"


@pytest.mark.parametrize("program", ["exit 3", "echo at work; exit 3"])
def test_one_that_ends_is_no_neighbour(
    neighbour: Any, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineError, match="'half' ended with status 3"), neighbour("half", 0):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
