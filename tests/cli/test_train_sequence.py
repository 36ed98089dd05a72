"""`ksm-hw train --sequence`: one task after another; what the bundle has stays; what is wrong is told before."""

import json
import re
import shutil
from pathlib import Path

import pytest
from learned_noise import refuse_to_calibrate, save_pets, saved_weights
from random_tasks import SMALL_NETWORK
from typer.testing import CliRunner, Result

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, tasks_in


@pytest.fixture
def place(tmp_path: Path, bundle: Bundle) -> Path:
    """A folder with weights, and two folders of images."""
    saved_weights(bundle, tmp_path / "w.pt")
    for name in ("pets", "my photos!"):
        save_pets(tmp_path / name)
    return tmp_path


def train(place: Path, *arguments: str) -> Result:
    options = ["--backbone", SMALL_NETWORK, "--weights", str(place / "w.pt"), "--image-size", "32", "--epochs", "1"]
    where = ["--bundle", str(place / "bundle"), "--log-folder", str(place / "runs")]
    return CliRunner().invoke(app, ["train", *options, "--method", "head", *where, *arguments])


def test_a_sequence_is_learned_and_what_is_there_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_calibrate(monkeypatch)
    sequence = f"pets={place / 'pets'}, {place / 'my photos!'}"
    first = train(place, "--sequence", f"pets={place / 'pets'}", "--json", "--log", "csv")
    assert [each["task"] for each in json.loads(first.stdout)] == ["pets"]
    before = (place / "bundle" / "tasks" / "pets.safetensors").read_bytes()
    both = train(place, "--sequence", sequence, "--json")
    assert [each["task"] for each in json.loads(both.stdout)] == ["my-photos-"]
    assert "Task 'pets' is in" in both.stderr and "and stays." in both.stderr
    assert tasks_in(place / "bundle") == ["my-photos-", "pets"]
    assert (place / "bundle" / "tasks" / "pets.safetensors").read_bytes() == before
    assert [path.name for path in (place / "runs").iterdir()] == ["pets.csv"]
    other = train(place, "--sequence", sequence, "--method", "ksm")
    assert isinstance(other.exception, UserError) and "was learned by head, not ksm" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --task and --data, or several tasks with --sequence"),
        (["--task", "pets"], "Give --task and --data"),
        (["--sequence", "mnist", "--task", "pets"], "Leave out --task and --data"),
        (["--sequence", "{pets},{pets}"], "two tasks called 'pets'"),
        (["--sequence", "{pets},nowhere"], "No folder and no data set named 'nowhere'"),
        (["--sequence", "{pets},"], "cannot name a task|No folder and no data set named ''"),
        (["--sequence", "../a={pets}"], "cannot name a task"),
    ],
)
def test_a_sequence_that_is_none_is_refused_before_anything_is_learned(
    arguments: list[str], message: str, place: Path
) -> None:
    result = train(place, *(each.format(pets=place / "pets") for each in arguments))
    assert isinstance(result.exception, UserError) and re.search(message, str(result.exception))
    assert not (place / "bundle").exists()


def test_what_was_learned_is_told_though_a_later_task_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the first is calibrated ends the sequence too, and the task is there."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ksm_hw.learning.train.calibrate", interrupted)
    result = train(place, "--sequence", f"pets={place / 'pets'},{place / 'my photos!'}", "--json")
    assert result.exit_code == 130 and "Task 'pets' is in" in result.stderr
    assert [each["task"] for each in json.loads(result.stdout)] == tasks_in(place / "bundle") == ["pets"]
    assert json.loads(result.stdout)[0]["free_share"] == 0, "a head uses all weights"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "head"], "has no folder 'train'"),
        (["--method", "fine-tuning"], "a bundle holds one such task"),
        (["--method", "packnet", "--epochs", "2", "--prune", "0"], r"the last of 2 tasks would find 0\.00%"),
        (["--method", "cpg", "--epochs", "2"], "none can be held out"),
        (["--scale-bits", "4"], "no use for --scale-bits"),
    ],
)
def test_a_sequence_that_cannot_end_is_not_begun(arguments: list[str], message: str, place: Path) -> None:
    shutil.rmtree(place / "my photos!" / "train")
    result = train(place, "--sequence", f"pets={place / 'pets'},{place / 'my photos!'}", "--json", *arguments)
    assert isinstance(result.exception, UserError) and re.search(message, str(result.exception))
    assert json.loads(result.stdout) == [] and not (place / "bundle").exists()
