"""Networks that grew: their layers and heads, and what cannot grow so."""

import pytest

from ksm_hw.errors import UserError
from ksm_hw.models.backbones import backbone_tensors, build_backbone, widen


def test_a_head_takes_what_a_wider_network_gives() -> None:
    network = build_backbone("resnet18", 5)
    shapes = {name: array.shape for name, array in backbone_tensors(network).items()}
    wider = {
        name: tuple(600 if count == 512 else count for count in shape)
        for name, shape in shapes.items()
        if "fc" not in name
    }
    assert widen(network, wider).fc.weight.shape == (5, 600)


def test_layers_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"weights of ResNet do not fit each other.*damaged"):
        widen(build_backbone("resnet18"), {"layer2.0.conv1.weight": (200, 64, 3, 3)})
    with pytest.raises(UserError, match=r"'conv1' of ResNet cannot have a weight of shape \[64, 3, 5, 5\]"):
        widen(build_backbone("resnet18"), {"conv1.weight": (64, 3, 5, 5)})
