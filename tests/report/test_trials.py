"""Trials in processes of their own, several beside each other: what fails, what is stopped, and what is kept."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.report.learning_trials import Learned, LearningTrial, all_trials, bundle_of, in_order, learn_trials

# What stands for Python with `ksm-hw train`: notes the task, and says what it is told to by the task's name.
LEARNER = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --task ] && task=$2; shift; done
echo "$task" >> {folder}/began
case $task in
bad) echo "no images" >&2; exit 2;;
slow) exec sleep 60;;
esac
echo '{"machine": "a card", "accuracy": 0.5, "seconds": 1.5, "gpu_bytes": 7, "pack_bytes": 10}'
"""


@pytest.fixture(autouse=True)
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "learner"
    script.write_text(LEARNER.replace("{folder}", str(tmp_path)))
    script.chmod(0o755)
    monkeypatch.setattr("ksm_hw.report.trials.sys.executable", str(script))


def trials_of(method: str, *tasks: str) -> list[LearningTrial]:
    return [LearningTrial(method, task, "nowhere", 0) for task in tasks]


def began(folder: Path) -> list[str]:
    return (folder / "began").read_text().split()


def test_what_changes_the_backbone_follows_and_comes_first() -> None:
    heads, packed, tuned = (trials_of(name, "a", "b") for name in ("head", "packnet", "fine-tuning"))
    other = LearningTrial("packnet", "a", "nowhere", 1)
    assert in_order([*heads, *packed, other, *tuned]) == [packed, *([each] for each in (*heads, other, *tuned))]


def test_each_method_is_learned_in_what_it_can_have_of_what_is_asked_for() -> None:
    found = all_trials(("ksm", "piggyback", "head"), (("a", "pets"),), 2, ("channel", "element"), (8, 4))
    assert [trial.variant for trial in found if trial.seed == 0] == [
        "ksm+channel+8", "ksm+channel+4", "ksm+element+8", "ksm+element+4", "piggyback+element", "head",
    ]  # fmt: skip
    assert len(found) == 12 and len({trial.name for trial in found}) == 12
    folders = [bundle_of(Path("f"), trial) for trial in found]
    assert len(set(folders)) == 12 and folders[0] == Path("f/bundles/ksm+channel+8-0")
    more = ["--granularity", "channel", "--scale-bits", "8"]
    assert found[0].arguments == ["--method", "ksm", "--task", "a", "--data", "pets", "--seed", "0", *more]
    assert [trial.variant for trial in all_trials(("ksm", "binary"), (("a", "pets"),), 1)] == ["ksm", "binary"]
    with pytest.raises(UserError, match="None of the methods piggyback, head has masks by channel"):
        all_trials(("piggyback", "head"), (("a", "pets"),), 1, ("element", "channel"))
    with pytest.raises(UserError, match="None of the methods binary has soft values in bits: 8, 4"):
        all_trials(("binary",), (("a", "pets"),), 1, (), (8, 4))


def test_a_trial_that_fails_costs_itself_and_what_follows_it(tmp_path: Path) -> None:
    heads, packed = trials_of("head", "a", "bad", "b"), trials_of("packnet", "c", "bad", "d")
    seen: list[LearningTrial] = []
    with pytest.raises(UserError) as raised:
        learn_trials([*heads, *packed], tmp_path, lambda method: [], 2, lambda trial, outcome: seen.append(trial))
    assert sorted(trial.name for trial in seen) == ["head-a-0", "head-b-0", "packnet-c-0"]
    assert "Task 'bad' was not learned by head with seed 0; the reason is in" in str(raised.value)
    assert "learned by packnet" in str(raised.value) and "d" not in began(tmp_path)
    assert (tmp_path / "trials" / "head-bad-0.log").read_text() == "no images\n"
    # What was learned stays: given again, only what is missing begins.
    before = len(began(tmp_path))
    with pytest.raises(UserError):
        learn_trials([*heads, *packed], tmp_path, lambda method: [])
    assert began(tmp_path)[before:] == ["bad", "bad"]


def test_what_a_trial_gave_is_kept(tmp_path: Path) -> None:
    (trial,) = trials_of("head", "a")
    (outcome,) = learn_trials([trial], tmp_path, lambda method: ["--epochs", "1"]).values()
    assert (outcome.machine, outcome.seconds, outcome.gpu_bytes, outcome.pack_bytes) == ("a card", 1.5, 7, 10)
    assert learn_trials([trial], tmp_path, lambda method: ["--epochs", "1"]) == {trial: outcome}
    assert began(tmp_path) == ["a"]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_who_is_stopped_ends_all_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_hw.report.trials._WHILE", 0.2)
    start = time.monotonic()

    def stop(trial: LearningTrial, outcome: Learned) -> None:
        while "slow" not in began(tmp_path):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_trials(trials_of("head", "slow", "a", "b", "c"), tmp_path, lambda method: [], 2, stop)
    assert time.monotonic() - start < 30 and len(began(tmp_path)) < 4


def test_another_comparison_in_the_folder_is_refused(tmp_path: Path) -> None:
    outcome = Learned("head", "pets", 0, ("--epochs", "1"), "a card", 0.5, 3.0, 2.0, 10**8, 0, 1000)
    path = tmp_path / "trials" / "head-pets-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps(dataclasses.asdict(outcome)))
    trials = trials_of("head", "pets")
    with pytest.raises(UserError, match="was made with --epochs 1, not --epochs 2"):
        learn_trials(trials, tmp_path, lambda method: ["--epochs", "2"])
    path.write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        learn_trials(trials, tmp_path, lambda method: ["--epochs", "1"])
