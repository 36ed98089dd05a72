"""The benchmark of disturbed cores: its neighbour is at work while an engine is measured, or that is said."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from peers.engines.ksm_hw_engine import artifact_folder
from peers.failures import EngineError
from peers.places import NETWORKS, REPOSITORY

from ksm_hw.artifact.manifest import read_manifest


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


@pytest.mark.slow  # Compiles MobileNetV2 four times.
def test_two_checkouts_are_measured_for_another_cpu() -> None:
    """This checkout stands for the other one as well."""
    command = [sys.executable, "benchmarks/disturbed_cores.py", "--models", "mobilenet_v2", "--engines", "ksm-hw"]
    command += ["--before", str(REPOSITORY), "--cpu", "haswell", "--rounds", "1", "--neighbours", "--json"]
    results = json.loads(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True).stdout)["results"]
    found = [(one["engine"], one["threads"], one["neighbour"]) for one in results]
    assert found == [(title, threads, "none") for title in ("ksm-hw", "ksm-hw, before") for threads in (1, 2)]
    assert all(0 < one["least_ms"] <= one["median_ms"] for one in results)
    for variant in ("untuned-haswell", "untuned-haswell-before"):
        artifact = artifact_folder(NETWORKS / "mobilenet_v2", 1, variant)
        assert read_manifest(artifact).tvm_target["mcpu"] == "haswell"
