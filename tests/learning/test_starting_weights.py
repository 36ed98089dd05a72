"""What a task is learned from: the weights that the bundle's others are over, or those that the first began from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learned_noise import noise, refuse_to_calibrate
from tiny_network import TINY, make_known, save_tiny

from ksm_hw.errors import UserError
from ksm_hw.learning.learn import Epoch
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.starting_weights import PRETRAINED
from ksm_hw.learning.train import Trained, checked_start, train_task
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.models.backbones import backbone_tensors, pretrained_backbone
from ksm_hw.models.task_module import task_module

# Large enough that masks cross the threshold and weights change within two steps.
FAST = LearningOptions(epochs=2, batch_size=8, mask_rate=6e-3, head_rate=1e-2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_known(monkeypatch)
    refuse_to_calibrate(monkeypatch)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "weights.pt")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "others.pt", seed=1)


def learned(
    weights: Path | None, folder: Path, task: str, options: LearningOptions, seed: int = 0, **called: Any
) -> Trained:
    return train_task(noise(seed), task, folder, TINY, options, weights=weights, image_size=32, **called)


def by(method: str) -> LearningOptions:
    rates = LearningOptions() if method == "head" else FAST  # A head alone has no use for a rate of masks.
    return dataclasses.replace(FAST, method=method, mask_rate=rates.mask_rate)


def logits_of(bundle: Bundle, task: str) -> torch.Tensor:
    with torch.inference_mode():
        return task_module(bundle, bundle.packs[task])(torch.ones(1, 3, 32, 32))


def stop(_: object) -> None:
    raise KeyboardInterrupt


def test_after_the_weights_changed_other_methods_learn_over_them(weights: Path, others: Path, tmp_path: Path) -> None:
    """The file that the first began from is known still, and may be given with each."""
    folder, logits = tmp_path / "bundle", dict[str, torch.Tensor]()
    for number, method in enumerate(("binary", "packnet", "ksm", "piggyback", "head")):
        learned(None if number == 3 else weights, folder, method, by(method))
        bundle = load_bundle(folder)
        assert all(torch.equal(logits[task], logits_of(bundle, task)) for task in logits)
        logits[method] = logits_of(bundle, method)
    began = sha256_of_tensors(backbone_tensors(pretrained_backbone(TINY, weights)))
    assert bundle.backbone_sha256 != began
    assert {pack.facts[PRETRAINED] for pack in bundle.packs.values()} == {began}
    with pytest.raises(UserError, match=f"SHA-256 .*{began}.*another bundle"):
        checked_start("more", folder, TINY, others, 32, by("ksm"))


@pytest.mark.parametrize("method", ["packnet", "fine-tuning", "head"])
def test_the_only_task_learned_again_begins_from_the_pretrained_weights(
    method: str, weights: Path, others: Path, tmp_path: Path
) -> None:
    """Not from what its own pruning left."""
    folder, pretrained = tmp_path / "bundle", backbone_tensors(pretrained_backbone(TINY, weights))
    learned(weights, folder, "only", by("packnet"))
    assert (load_bundle(folder).tensors["2.0.weight"] == 0).mean() > 0.7
    options = by(method) if method == "head" else dataclasses.replace(by(method), mask_rate=1e-9)
    learned(weights, folder, "only", dataclasses.replace(options, prune=0.0) if method == "packnet" else options)
    after = load_bundle(folder).tensors
    assert all(np.allclose(array, after[name]) for name, array in pretrained.items() if array.ndim > 1)
    with pytest.raises(UserError, match=f"{sha256_of_tensors(pretrained)}.*--weights with the file"):
        checked_start("only", folder, TINY, others, 32, FAST)


def test_a_task_that_replaces_one_says_what_that_leaves(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for task in ("first", "second"):
        learned(weights, tmp_path / "bundle", task, by("packnet"))
    assert "What task" not in caplog.text
    learned(weights, tmp_path / "bundle", "first", by("packnet"))
    assert "What task 'first' alone changed of the backbone stays so" in caplog.text


def test_learning_does_not_go_on_over_other_weights_of_an_older_task(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    learned(weights, folder, "older", by("binary"))
    with pytest.raises(KeyboardInterrupt):
        learned(weights, folder, "newer", by("cpg"), on_epoch=stop)
    learned(weights, folder, "older", by("binary"), seed=5)
    with pytest.raises(UserError, match="--restart"):
        learned(weights, folder, "newer", by("cpg"), on_epoch=stop)


def test_what_is_left_of_a_task_that_was_added_is_no_checkpoint(weights: Path, tmp_path: Path) -> None:
    """A process that is killed right behind it leaves nothing that a later one would trip over."""
    epochs: list[Epoch] = []
    with pytest.raises(KeyboardInterrupt):
        learned(weights, tmp_path / "bundle", "task", by("packnet"), on_epoch=epochs.append, on_added=stop)
    assert load_bundle(tmp_path / "bundle").packs.keys() == {"task"} and len(epochs) == 2
    assert not list(tmp_path.rglob("*task.pt*"))
