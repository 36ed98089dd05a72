"""A process that measures an artifact: its answers, and what the user is told when it cannot give them."""

from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.measuring.process import measuring_process


def test_it_measures_and_a_mistake_does_not_end_it(artifact: Path) -> None:
    with measuring_process(artifact, threads=1) as measured:
        assert measured.facts["threads"] == 1 and measured.facts["load_seconds"] > 0
        assert len(measured.ask("run", task="other-task", repeats=4)) == 4
        with pytest.raises(UserError, match="Did you mean 'other-task'"):
            measured.ask("run", task="othr-task", repeats=4)
        switches = measured.ask("switch", tasks=["other-task", "kernel-task"], rounds=2)
        assert {task: len(seconds) for task, seconds in switches.items()} == {"other-task": 2, "kernel-task": 2}
        assert len(measured.ask("copy", repeats=2)) == 2
        calls = measured.ask("calls", task="kernel-task", repeats=2)
        assert calls and all(len(call["seconds"]) == 2 for call in calls)


def test_the_memory_is_that_of_the_runtime(artifact: Path) -> None:
    """The compiler alone would take 150 MB more."""
    with measuring_process(artifact) as measured:
        assert measured.facts["process_start_bytes"] < 200e6


def test_an_artifact_that_does_not_load_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No artifact at"), measuring_process(tmp_path):
        pass
