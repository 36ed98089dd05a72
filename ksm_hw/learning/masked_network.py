"""A network in training: a frozen backbone whose weights are multiplied by learned masks.

Each masked layer's weight is a parametrization (`torch.nn.utils.parametrize`): the layer keeps the backbone's weight,
frozen, as `parametrizations.weight.original`, and computes with W · soft_mask(mask_real).
"""

import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.learning.mask_equations import PAPER, MaskConstants, soft_mask
from ksm_hw.learning.methods import method_named
from ksm_hw.masks.mask_format import Granularity, ScaleBits, group_size, mask_shape
from ksm_hw.masks.soft_mask import PackedMask, pack_mask
from ksm_hw.models.backbones import head_path, maskable_layers, replace_head


class SoftMaskParametrization(nn.Module):
    """Multiplies a weight by its soft mask.

    Attributes:
        mask_real: the learned parameter, float32, in the shape that `mask_shape` gives for the granularity.
    """

    def __init__(self, weight: torch.Tensor, granularity: Granularity, constants: MaskConstants) -> None:
        super().__init__()
        self.group_size = group_size(granularity)
        self.constants = constants
        shape = mask_shape(tuple(weight.shape), granularity)
        self.mask_real = nn.Parameter(torch.full(shape, constants.initial))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = soft_mask(self.mask_real, self.constants)
        if self.group_size > 1:
            mask = mask.repeat_interleave(self.group_size, dim=1)[:, : weight.shape[1]]
        return weight * mask


def mask_network(
    backbone: nn.Module,
    classes: int,
    method: str = "ksm",
    granularity: Granularity = "kernel",
    constants: MaskConstants = PAPER,
) -> nn.Module:
    """Turns a pretrained backbone into a network that learns one task, in place, and returns it.

    Everything is frozen but a fresh head and what the method learns.

    Args:
        backbone: the pretrained network.
        classes: outputs of the head.
        method: its name in the table of `METHODS`.
        granularity: what shares a mask value.
        constants: of the equations; binary masks set `scale_weight` to 0.

    Raises:
        UserError: there is no such method.
    """
    learned = method_named(method)
    for parameter in backbone.parameters():
        parameter.requires_grad_(learned.weights)
    replace_head(backbone, classes)
    if learned.masks:
        if not learned.soft:
            constants = dataclasses.replace(constants, scale_weight=0.0)
        for path in maskable_layers(backbone):
            layer = backbone.get_submodule(path)
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            parametrization = SoftMaskParametrization(weight, granularity, constants)
            parametrize.register_parametrization(layer, "weight", parametrization)
    return _settle_batch_norms(backbone) if learned.batch_norms else backbone


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
    """What is learned below the head: masks, BatchNorms or weights, as the method says."""
    head = set(head_parameters(network))
    return [parameter for parameter in network.parameters() if parameter.requires_grad and parameter not in head]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The head: its weight, [classes, features] or of a convolution [classes, features, 1, 1], and bias [classes]."""
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
