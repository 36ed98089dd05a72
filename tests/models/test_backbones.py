"""Networks as shapes, and networks that grew: their layers and heads, and what cannot grow so."""

import pytest

from ksm_hw.errors import UserError
from ksm_hw.models.backbones import backbone_tensors, build_backbone, build_shapes, widen


@pytest.mark.parametrize("name", ["efficientnet-lite0", "regnet_x_400mf", "shufflenet_v2_x0_5", "swin_t"])
def test_a_network_is_built_as_shapes(name: str) -> None:
    """RegNet's constructor finds its widths by the values of tensors, which the meta device has not."""
    found, built = build_shapes(name).state_dict(), build_backbone(name).state_dict()
    assert {path: tensor.shape for path, tensor in found.items()} == {path: built[path].shape for path in built}
    assert sum(tensor.nbytes for tensor in found.values() if not tensor.is_meta) < 0.02 * sum(
        tensor.nbytes for tensor in built.values()
    ), "weights take no memory"


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
