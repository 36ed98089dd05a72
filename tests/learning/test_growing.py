"""A network that grows for a task's goal: older tasks keep the first channels, and a stopped run goes on."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_noise import noise, refuse_to_calibrate
from tiny_network import TINY, make_known, save_tiny

from ksm_hw.errors import UserError
from ksm_hw.learning.growing import check_grows
from ksm_hw.learning.learn import Epoch
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import checked_start, checkpoint_of, train_task
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.models import backbones
from ksm_hw.models.task_module import task_module

OPTIONS = LearningOptions("cpg", epochs=2, batch_size=8, mask_rate=6e-3, head_rate=1e-2, max_width=1.5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's folder, in a process that knows the tiny network."""
    make_known(monkeypatch)
    refuse_to_calibrate(monkeypatch)
    save_tiny(tmp_path / "weights.pt")
    return tmp_path / "bundle"


def learn(
    folder: Path, task: str, seed: int, options: LearningOptions, epochs: list[Epoch], stop: bool = False
) -> None:
    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        if stop and list(folder.glob(".learning/*.width-1.5.pt")):
            raise KeyboardInterrupt

    weights = folder.parent / "weights.pt"
    train_task(noise(seed), task, folder, TINY, options, weights=weights, image_size=32, on_epoch=on_epoch)


def test_a_task_that_misses_its_goal_is_learned_in_a_wider_network(folder: Path) -> None:
    epochs: list[Epoch] = []
    learn(folder, "first", 0, dataclasses.replace(OPTIONS, accuracy_goal=0.0), [])
    before = load_bundle(folder)
    # So slowly that no network reaches it.
    goal = dataclasses.replace(OPTIONS, accuracy_goal=1.0, validation=0.5, mask_rate=1e-6, head_rate=1e-6)
    with pytest.raises(KeyboardInterrupt):
        learn(folder, "second", 1, goal, epochs, stop=True)
    learn(folder, "second", 1, goal, epochs)
    after = load_bundle(folder)
    assert [(epoch.number, epoch.width, epoch.verdict) for epoch in epochs] == [(1, 1, "grow"), (2, 1.5, "grow")]
    facts = after.packs["second"].facts
    assert epochs[0].seconds < epochs[1].seconds and facts["seconds"] == round(epochs[1].seconds, 1)
    assert (facts["epochs"], facts["training_images"]) == (2, 8), "of all widths; half is held out"
    assert not list(checkpoint_of(folder, "second").parent.glob("*.pt")) if (folder / ".learning").exists() else True
    shapes = {name: list(array.shape) for name, array in after.tensors.items() if array.ndim > 1}
    assert shapes == {"0.0.weight": [14, 3, 3, 3], "1.0.weight": [14, 1, 3, 3], "2.0.weight": [24, 14, 1, 1]}
    for layer, mask in before.packs["first"].masks.items():
        narrow, wide = before.tensors[f"{layer}.weight"], after.tensors[f"{layer}.weight"]
        found = wide * unpack_mask(after.packs["first"].masks[layer])
        assert np.array_equal(found[tuple(map(slice, narrow.shape))], narrow * unpack_mask(mask))
        assert (unpack_mask(after.packs["second"].masks[layer])[len(narrow) :] == 1).any(), "new channels are learned"
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = [task_module(bundle, bundle.packs["first"])(images) for bundle in (before, after)]
    # A sum over more channels, of which the new are 0, may be rounded in another order.
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenet_v2"])
def test_a_layer_that_grows_stays_of_its_kind(name: str) -> None:
    """EfficientNet-Lite0's convolutions pad by themselves, as TensorFlow does; plain ones would not."""
    check_grows(name)
    with torch.device("meta"):
        narrow = backbones.build_backbone(name)
        shapes = {path: array.shape for path, array in narrow.state_dict().items() if array.ndim}
        wide = backbones.widen(backbones.build_backbone(name), {path: wider(shape) for path, shape in shapes.items()})
    described = [[re.sub(r"\d{2,}", "N", repr(module)) for module in network.modules()] for network in (narrow, wide)]
    assert described[0] == described[1]
    assert wide.state_dict()[next(iter(shapes))].shape[0] == 2 * shapes[next(iter(shapes))][0]


def wider(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape in a network of twice the width, in which colours and depthwise convolutions stay."""
    return (2 * shape[0], *(2 * size if size > 3 else size for size in shape[1:2]), *shape[2:])


def test_a_task_is_learned_over_a_network_that_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_calibrate(monkeypatch)
    weights = tmp_path / "weights.pt"
    torch.save(backbones.build_backbone("regnet_x_400mf").state_dict(), weights)
    options = LearningOptions("ksm", epochs=1, batch_size=8)
    train_task(noise(0), "task", tmp_path / "bundle", "regnet_x_400mf", options, weights=weights, image_size=32)
    assert list(load_bundle(tmp_path / "bundle").packs) == ["task"]
    with pytest.raises(UserError, match=r"RegNet cannot grow: .*groups"):
        check_grows("regnet_x_400mf")


def test_a_goal_is_for_methods_and_networks_that_grow(folder: Path) -> None:
    for options, backbone, message in (
        (LearningOptions("ksm", accuracy_goal=0.5), TINY, "has no use for --accuracy-goal"),
        (LearningOptions("cpg", accuracy_goal=0.5), "densenet121", "--max-width 1 "),
    ):
        with pytest.raises(UserError, match=message):
            checked_start("task", folder, backbone, folder.parent / "weights.pt", 32, options)
