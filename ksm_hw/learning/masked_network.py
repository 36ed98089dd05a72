"""A network in training: a frozen backbone whose weights are multiplied by learned masks.

Each masked layer's weight is a parametrization (`torch.nn.utils.parametrize`): the layer keeps the backbone's weight,
frozen, as `parametrizations.weight.original`, and computes with W · soft_mask(mask_real).
"""

from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.learning.mask_equations import PAPER, MaskConstants, soft_mask
from ksm_hw.masks.soft_mask import GROUP_SIZE, Granularity, PackedMask, ScaleBits, mask_shape, pack_mask
from ksm_hw.models.backbones import head_path, maskable_layers, replace_head

Method = Literal["ksm", "binary", "head", "fine-tuning"]


class SoftMaskParametrization(nn.Module):
    """Multiplies a weight by its soft mask.

    Attributes:
        mask_real: the learned parameter, float32, in the shape that `mask_shape` gives for the granularity.
    """

    def __init__(self, weight: torch.Tensor, granularity: Granularity, constants: MaskConstants) -> None:
        super().__init__()
        self.granularity = granularity
        self.constants = constants
        shape = mask_shape(tuple(weight.shape), granularity)
        self.mask_real = nn.Parameter(torch.full(shape, constants.initial))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = soft_mask(self.mask_real, self.constants)
        if self.granularity == "group":
            mask = mask.repeat_interleave(GROUP_SIZE, dim=1)[:, : weight.shape[1]]
        return weight * mask


def mask_network(
    backbone: nn.Module,
    classes: int,
    method: Method = "ksm",
    granularity: Granularity = "kernel",
    constants: MaskConstants = PAPER,
) -> nn.Module:
    """Turns a pretrained backbone into a network that learns one task, in place, and returns it.

    With `ksm` and `binary` everything is frozen but the masks, the BatchNorms and a fresh head.

    Args:
        backbone: the pretrained network.
        classes: outputs of the head.
        method: `ksm` soft masks; `binary` the same without the soft part; `head` the head alone, over the features as
            they are; `fine-tuning` every weight, to compare with: its result is a whole network, no task pack.
        granularity: what shares a mask value.
        constants: of the equations; `binary` sets `scale_weight` to 0.
    """
    for parameter in backbone.parameters():
        parameter.requires_grad_(method == "fine-tuning")
    replace_head(backbone, classes)
    if method == "head":
        return backbone
    if method == "fine-tuning":
        return _settle_batch_norms(backbone)
    if method == "binary":
        constants = MaskConstants(**{**vars(constants), "scale_weight": 0.0})
    for path in maskable_layers(backbone):
        layer = backbone.get_submodule(path)
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        parametrize.register_parametrization(layer, "weight", SoftMaskParametrization(weight, granularity, constants))
    return _settle_batch_norms(backbone)


def _settle_batch_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The statistics of a task must settle within its few hundred steps, whatever momentum the backbone had.
            module.momentum = 0.1
            for parameter in module.parameters():
                parameter.requires_grad_(True)
    return network


def soft_mask_layers(network: nn.Module) -> dict[str, SoftMaskParametrization]:
    """The masks of a network by the module path of their layer."""
    return {
        path.removesuffix(".parametrizations.weight.0"): module
        for path, module in network.named_modules()
        if isinstance(module, SoftMaskParametrization)
    }


def body_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is learned below the head: masks and BatchNorms; nothing with `head`, every weight with `fine-tuning`."""
    head = set(head_parameters(network))
    return [parameter for parameter in network.parameters() if parameter.requires_grad and parameter not in head]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The head: its weight [classes, features] and bias [classes]."""
    return list(network.get_submodule(head_path(network)).parameters())


@torch.no_grad()
def pack_masks(network: nn.Module, scale_bits: ScaleBits = 32) -> dict[str, PackedMask]:
    """The masks of a network, packed; a binary mask is packed without soft values whatever `scale_bits` says."""
    return {
        path: pack_mask(
            soft_mask(layer.mask_real, layer.constants).cpu().numpy(),
            scale_bits if layer.constants.scale_weight else 0,
        )
        for path, layer in soft_mask_layers(network).items()
    }
