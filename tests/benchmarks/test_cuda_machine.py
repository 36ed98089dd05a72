"""What `cuda_machine.py` does beside the GPU: engines that cannot load, turns, and the tables."""

import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_an_engine_that_fails_keeps_its_row_with_the_reason(on_path, tmp_path):
    from cuda_peers.page import page
    from cuda_peers.turns import measure

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(BENCHMARKS), *sys.path]))}
    engines = measure(
        tmp_path, ["resnet18-1"], {"ksm-hw, now": "ksm-hw now"}, rounds=1, seconds=60, environment=environment
    )
    (summary,) = [engine.summary() for engine in engines]
    assert "images.npy" in summary["failure"] and summary["median_ms"] is None
    written = page({"gpu": "none", "networks": [summary]})
    assert "| ksm-hw, now | failed |" in written and f"- ksm-hw, now, resnet18-1: {summary['failure']}" in written


def test_the_page_has_a_table_a_batch(on_path):
    from cuda_peers.page import page
    from cuda_peers.turns import Engine

    engines = [
        Engine("ksm-hw, now", "ksm-hw now", "resnet18-1", 2e-7, [[0.001, 0.003], [0.001, 0.001]]),
        Engine("PyTorch eager", "torch eager", "resnet18-32", 1e-3, [[0.02], [0.03]]),
    ]
    written = page({"gpu": "a GPU", "networks": [engine.summary() for engine in engines]})
    assert written.index("Batch 1,") < written.index("| ksm-hw, now | 1.000 (2e-07, noisy) |")
    assert written.index("Batch 32,") < written.index("| PyTorch eager | 25.000 (1e-03, noisy) |")
