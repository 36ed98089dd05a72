"""A network that grows for a task's goal: older tasks keep the first channels, and a stopped run goes on."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_noise import noise, refuse_to_calibrate
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.growing import check_grows
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import checked_backbone, checkpoint_of, train_task
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.models import backbones
from ksm_hw.models.task_module import task_module

OPTIONS = LearningOptions("cpg", epochs=2, batch_size=8, mask_rate=6e-3, head_rate=1e-2, max_width=1.5)
NAME = "tiny"


def tiny(classes: int = 1000) -> nn.Module:
    """A plain and a depthwise convolution, BatchNorms, a head."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(16, classes),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's folder, in a process that knows the tiny network."""
    build = backbones.build_backbone

    def build_also(name: str, classes: int = 1000) -> nn.Module:
        return tiny(classes) if name == NAME else build(name, classes)

    for module in ("models.backbones", "models.task_module", "learning.growing"):
        monkeypatch.setattr(f"ksm_hw.{module}.build_backbone", build_also)
    preprocessing = backbones.default_preprocessing("efficientnet-lite0", 32)
    monkeypatch.setattr("ksm_hw.learning.train.default_preprocessing", lambda *_: preprocessing)
    refuse_to_calibrate(monkeypatch)
    torch.manual_seed(0)
    state = {name: tensor for name, tensor in tiny().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "bundle"


def learn(folder: Path, task: str, seed: int, options: LearningOptions, stop: bool = False) -> None:
    def on_epoch(_: object) -> None:
        if stop and list(folder.glob(".learning/*.width-1.5.pt")):
            raise KeyboardInterrupt

    weights = folder.parent / "weights.pt"
    train_task(noise(seed), task, folder, NAME, options, weights=weights, image_size=32, on_epoch=on_epoch)


def test_a_task_that_misses_its_goal_is_learned_in_a_wider_network(folder: Path) -> None:
    learn(folder, "first", 0, dataclasses.replace(OPTIONS, accuracy_goal=0.0))
    before = load_bundle(folder)
    # So slowly that no network reaches it.
    goal = dataclasses.replace(OPTIONS, accuracy_goal=1.0, validation=0.5, mask_rate=1e-6, head_rate=1e-6)
    with pytest.raises(KeyboardInterrupt):
        learn(folder, "second", 1, goal, stop=True)
    learn(folder, "second", 1, goal)
    after = load_bundle(folder)
    assert not list(checkpoint_of(folder, "second").parent.glob("*.pt")) if (folder / ".learning").exists() else True
    shapes = {name: list(array.shape) for name, array in after.tensors.items() if array.ndim > 1}
    assert shapes == {"0.0.weight": [12, 3, 3, 3], "1.0.weight": [12, 1, 3, 3], "2.0.weight": [24, 12, 1, 1]}
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


def test_a_goal_is_for_methods_and_networks_that_grow(folder: Path) -> None:
    for options, backbone, message in (
        (LearningOptions("ksm", accuracy_goal=0.5), NAME, "has no goal of accuracy"),
        (LearningOptions("cpg", accuracy_goal=0.5), "densenet121", "--max-width 1 "),
    ):
        with pytest.raises(UserError, match=message):
            checked_backbone("task", folder, backbone, folder.parent / "weights.pt", 32, options)
