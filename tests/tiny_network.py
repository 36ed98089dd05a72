"""A network so small that learning, growing and compiling it takes no time, which a test makes known by a name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ksm_hw.models import backbones

TINY = "tiny"
# All that look a network up by its name.
_BUILDERS = (
    "models.backbones",
    "models.task_module",
    "learning.growing",
    "quantising.network",
    "compiler.lower",
)


def tiny(classes: int = 1000) -> nn.Module:
    """Of odd widths, so that half of one is rounded: a plain and a depthwise convolution, BatchNorms, a head."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 9, 3, 2, bias=False), nn.BatchNorm2d(9), nn.ReLU()),
        nn.Sequential(nn.Conv2d(9, 9, 3, groups=9), nn.BatchNorm2d(9), nn.ReLU()),
        nn.Sequential(nn.Conv2d(9, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(16, classes),
    )


def make_known(monkeypatch: pytest.MonkeyPatch, own: str = TINY, network: Callable[[int], nn.Module] = tiny) -> None:
    """Lets this process know a network by its name."""
    build = backbones.build_backbone

    def build_also(name: str, classes: int = 1000) -> nn.Module:
        return network(classes) if name == own else build(name, classes)

    for module in _BUILDERS:
        monkeypatch.setattr(f"ksm_hw.{module}.build_backbone", build_also)
    preprocessing = backbones.default_preprocessing("efficientnet-lite0", 32)
    monkeypatch.setattr("ksm_hw.learning.train.default_preprocessing", lambda *_: preprocessing)


def save_tiny(path: Path, seed: int = 0) -> Path:
    """Writes random weights of the network."""
    torch.manual_seed(seed)
    torch.save({name: tensor for name, tensor in tiny().state_dict().items() if "num_batches" not in name}, path)
    return path
