"""Training into a bundle's folder: what is held, what is told and what is left, whatever is learned."""

import contextlib
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learned_noise import save_pets, saved_weights
from random_tasks import SMALL_NETWORK

from ksm_hw import cli
from ksm_hw.files.locks import locked
from ksm_hw.learning.dataset_sources import ImagesInMemory
from ksm_hw.learning.datasets import TaskData, load_task_data
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import checkpoint_of, train_task, write_samples
from ksm_hw.masks.bundle import Bundle


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_pets(tmp_path / "photos")


@pytest.fixture
def weights(bundle: Bundle, tmp_path: Path) -> Path:
    return saved_weights(bundle, tmp_path / "weights.pt")


def interrupted(*_arguments: object, **_options: object) -> Any:
    raise KeyboardInterrupt


def test_a_task_is_held_while_it_is_learned(
    copied_bundle: Path,
    photos: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And that it will replace one is said before; half a checkpoint that a killed process left goes."""
    held: list[str] = []
    folder = copied_bundle / ".learning"
    folder.mkdir()
    before = {*copied_bundle.rglob("*")}
    for left in (".kernel-task.pt.killed", ".kernel-task.width-1.5.pt.killed"):
        (folder / left).touch()

    def learn(*_arguments: object) -> Any:
        held.extend(path.name for path in folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("ksm_hw.learning.growing.learn", learn)
    data: TaskData = load_task_data(str(photos))
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        train_task(data, "kernel-task", copied_bundle, SMALL_NETWORK, LearningOptions(), weights=weights, image_size=32)
    assert held == ["kernel-task.lock"]
    assert "Task 'kernel-task' is in" in caplog.text and "it is replaced at the end" in caplog.text
    assert {*copied_bundle.rglob("*")} == before


@pytest.mark.parametrize(("method", "lock"), [("head", "weights-lock"), ("fine-tuning", "other.lock")])
def test_weights_change_while_no_other_task_is_learned(
    method: str, lock: str, tmp_path: Path, photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned over weights that another process changed meanwhile, a task could not be added."""
    begun = threading.Event()

    def learn(*_arguments: object) -> Any:
        begun.set()
        raise KeyboardInterrupt

    def train() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            train_task(data, "task", folder, SMALL_NETWORK, LearningOptions(method), weights=weights, image_size=32)

    monkeypatch.setattr("ksm_hw.learning.growing.learn", learn)
    folder, data = tmp_path / "bundle", load_task_data(str(photos))
    thread = threading.Thread(target=train, daemon=True)
    with locked(checkpoint_of(folder, "task").with_name(lock)):
        thread.start()
        end = time.monotonic() + 30
        while not (folder / ".learning" / "weights-lock").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not begun.wait(1)
    assert begun.wait(30)
    thread.join(30)


@pytest.mark.parametrize("epochs", [0, 1])
def test_ctrl_c_says_what_is_kept(
    tmp_path: Path,
    photos: Path,
    weights: Path,
    epochs: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    if epochs:
        checkpoint_of(bundle, "pets").parent.mkdir(parents=True)
        checkpoint_of(bundle, "pets").touch()
    monkeypatch.setattr("ksm_hw.learning.growing.learn", interrupted)
    options = ["--backbone", SMALL_NETWORK, "--weights", str(weights), "--image-size", "32", "--bundle", str(bundle)]
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "train", "--task", "pets", "--data", str(photos), *options])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert exit_.value.code == 130
    assert ("Whole epochs are kept" in said) == bool(epochs) and ("nothing is kept" in said) == (not epochs)
    assert bundle.exists() == bool(epochs), "what was made for nothing is gone"


def test_samples_of_classes_with_long_names(tmp_path: Path) -> None:
    split = ImagesInMemory([np.zeros((8, 8, 3), np.uint8)] * 2, [0, 1])
    write_samples(split, ("c" * 255, "é" * 127), tmp_path / "samples")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"00-{'c' * 100}.png", "01-_.png"]
