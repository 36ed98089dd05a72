"""A small network with every operator that int8 knows, and random tasks of it with ranges."""

import dataclasses

import pytest
import torch
from random_tasks import random_bundle
from settled_networks import blurred_images
from tiny_network import make_known
from torch import nn
from torch.nn import functional

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.mask_format import Granularity
from ksm_hw.models import backbones
from ksm_hw.quantising.calibrate import calibrate

NAME, SIZE = "every-operator", 12
IMAGES = blurred_images(4, SIZE, seed=1).numpy()


class _Excited(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.excite(functional.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return functional.hardsigmoid(gate) * x * gate.sigmoid()


class EveryOperator(nn.Module):
    """Convolutions plain, depthwise, grouped and dense; activations; what joins, pools and moves tensors."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 20, 3, 2, 1, bias=False), nn.BatchNorm2d(20), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.BatchNorm2d(20), nn.SiLU())
        self.grouped = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(20))
        self.excited = _Excited(20)
        self.norm, self.growth = nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1, bias=False)
        self.other_norm, self.other_growth = nn.BatchNorm2d(28), nn.Conv2d(28, 4, 3, padding=1, bias=False)
        self.last_norm, self.hidden = nn.BatchNorm2d(32), nn.Linear(32, 17)
        self.classifier = nn.Linear(17, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.first(images))
        x = functional.max_pool2d((x + self.grouped(x)).relu(), 3, 2, 1)
        x = self.excited(x)
        x = torch.cat([x, self.growth(self.norm(x).relu())], 1)
        parts = [x, self.other_growth(functional.relu6(self.other_norm(torch.cat([x], 1))))]
        x = functional.avg_pool2d(self.last_norm(torch.cat(parts, 1)).relu(), 2, 2)
        first, second = x.view(len(x), 2, 16, *x.shape[2:]).transpose(1, 2).contiguous().view(x.shape).chunk(2, 1)
        x = torch.cat([second, first], 1).mean((2, 3))
        return self.classifier(functional.hardswish(self.hidden(x)))


def every_operator(monkeypatch: pytest.MonkeyPatch, granularities: tuple[Granularity, ...] = ("kernel",)) -> Bundle:
    """A task of each granularity, with ranges, of the network, which is known by its name from here on."""
    make_known(monkeypatch, NAME, EveryOperator)
    preprocessing = backbones.default_preprocessing("efficientnet-lite0", SIZE)
    monkeypatch.setattr("random_tasks.build_backbone", backbones.build_backbone)
    monkeypatch.setattr("random_tasks.default_preprocessing", lambda *_: preprocessing)
    return with_ranges(random_bundle(NAME, SIZE, granularities))


def with_ranges(bundle: Bundle) -> Bundle:
    """The tasks calibrated on blurred images."""
    packs = {}
    for task, pack in bundle.packs.items():
        images = blurred_images(4, pack.preprocessing.image_size, seed=2).numpy()
        packs[task] = dataclasses.replace(pack, calibration=calibrate(bundle, pack, [images], "minmax"))
    return dataclasses.replace(bundle, packs=packs)
