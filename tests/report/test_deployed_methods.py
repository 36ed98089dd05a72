"""Methods compiled for this machine and measured: what is made anew, and what is taken as it is."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.task_pack import save_task_pack
from ksm_hw.report.deployed_methods import deploy
from ksm_hw.report.learning_trials import LearningTrial


class StoppedError(Exception):
    """Who watches the steps stops them."""


@pytest.fixture
def trials(bundle: Bundle) -> list[LearningTrial]:
    return [LearningTrial("ksm", task, "nowhere", 0) for task in bundle.packs]


@pytest.fixture
def folder(copied_bundle: Path, copied_artifact: Path, tmp_path: Path) -> Path:
    """A comparison that was stopped when the bundle had been compiled in float32."""
    for made, name in ((copied_bundle, "bundles/ksm-0"), (copied_artifact, "artifacts/ksm-0-float32")):
        (tmp_path / "compared" / name).parent.mkdir(parents=True)
        shutil.move(made, tmp_path / "compared" / name)
    return tmp_path / "compared"


def test_what_was_compiled_is_measured_once(
    folder: Path, trials: list[LearningTrial], caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []
    with caplog.at_level(logging.WARNING):
        found = deploy(trials, folder, steps.append)
    assert "ksm-0 is not measured in int8: " in caplog.text and "ksm-hw calibrate" in caplog.text
    assert next(step for step in steps if "float32" in step) == "ksm-0-float32: load"
    assert found.keys() == {("ksm", trial.task) for trial in trials}
    for each in found.values():
        assert each.latency > 0 and each.switch is not None and each.switch > 0
        assert each.int8_latency is None and each.int8_switch is None
        assert "(" in each.machine and "thread" in each.machine
    shutil.rmtree(folder / "artifacts")
    steps.clear()
    assert deploy(trials, folder, steps.append) == found
    assert not [step for step in steps if "float32" in step]


@pytest.mark.parametrize("what", ["nothing", "a task", "the library"])
def test_what_is_of_other_tasks_or_damaged_is_compiled_again(
    what: str, folder: Path, trials: list[LearningTrial], bundle: Bundle
) -> None:
    if what == "a task":
        pack = bundle.packs["kernel-task"]
        changed = dataclasses.replace(pack, head_bias=pack.head_bias + 1)
        save_task_pack(changed, folder / "bundles" / "ksm-0" / "tasks" / "kernel-task.safetensors")
    elif what == "the library":
        (folder / "artifacts" / "ksm-0-float32" / "model.so").write_bytes(b"")

    def stop(step: str) -> None:
        if "float32" in step:
            raise StoppedError(step)

    with pytest.raises(StoppedError) as stopped:
        deploy(trials, folder, stop)
    assert (str(stopped.value) == "ksm-0-float32: load") == (what == "nothing")
