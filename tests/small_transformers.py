"""The smallest transformers of torchvision's kinds, for images of 32 pixels, that a test makes known by their names."""

import functools
from collections.abc import Callable

import pytest
from tiny_network import make_known
from torch import nn

from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.models.backbones import replace_head
from ksm_hw.models.torchvision_import import import_torchvision

SMALL_TRANSFORMERS = ("small-vit", "small-swin", "small-convnext", "small-maxvit")
PREPROCESSING = Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.25,) * 3)


def small_transformer(name: str, classes: int = 1000) -> nn.Module:
    """One of `SMALL_TRANSFORMERS`, with random weights; torchvision's own heads begin at 0."""
    models = import_torchvision().models
    match name:
        case "small-vit":
            network = models.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=40)
        case "small-swin":
            network = models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], stochastic_depth_prob=0.0)
        case "small-convnext":
            blocks = models.convnext.CNBlockConfig(16, 24, 1), models.convnext.CNBlockConfig(24, None, 1)
            network = models.ConvNeXt([*blocks])
        case _:
            network = models.MaxVit((32, 32), 16, 4, [16], [1], head_dim=8, stochastic_depth_prob=0.0)
    replace_head(network, classes)
    return network


def make_transformer_known(
    monkeypatch: pytest.MonkeyPatch, name: str, network: Callable[[int], nn.Module] | None = None
) -> None:
    """Lets this process know one, or another network, by its name, for `random_bundle` too."""
    build = network or functools.partial(small_transformer, name)
    make_known(monkeypatch, name, build)
    monkeypatch.setattr("random_tasks.build_backbone", lambda _: build(1000))
    monkeypatch.setattr("random_tasks.default_preprocessing", lambda *_: PREPROCESSING)
