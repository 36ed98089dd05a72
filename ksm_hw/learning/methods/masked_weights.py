"""A network in training: weights that are multiplied by learned masks, and the parts that are learned.

Each masked layer's weight is a parametrization (`torch.nn.utils.parametrize`): the layer keeps the backbone's weight as
`parametrizations.weight.original`, and computes with what the parametrization makes of it. Layers have the names of
their masks (`mask_names`).
"""

import re
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.learning.mask_equations import MaskOf
from ksm_hw.masks.mask_format import Granularity, ScaleBits, group_size, mask_shape
from ksm_hw.masks.mask_names import layer_of, weight_of
from ksm_hw.masks.soft_mask import PackedMask, pack_mask
from ksm_hw.models.backbones import head_path, maskable_layers

_PARAMETRIZATION = re.compile(r"(.+)\.parametrizations\.([^.]+)\.0")


class Masked(Protocol):
    """The parametrization of a masked weight.

    Attributes:
        soft: whether the mask has soft values where its binary mask is 0.
    """

    soft: bool

    def mask(self) -> torch.Tensor:
        """The task's mask, float32, in the shape that `mask_shape` gives for its granularity."""
        ...

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """The backbone's weight as it is after the task, from the parametrization's original."""
        ...


class LearnedMask(nn.Module):
    """Multiplies a frozen weight by a mask that is made of real values.

    Attributes:
        mask_real: the learned parameter, float32, in the shape that `mask_shape` gives for the granularity.
    """

    def __init__(
        self, weight: torch.Tensor, granularity: Granularity, initial: float, mask_of: MaskOf, soft: bool
    ) -> None:
        super().__init__()
        self.group_size = group_size(granularity)
        self.mask_of, self.soft = mask_of, soft
        self.mask_real = nn.Parameter(torch.full(mask_shape(tuple(weight.shape), granularity), initial))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = self.mask()
        if self.group_size > 1:
            mask = mask.repeat_interleave(self.group_size, dim=1)[:, : weight.shape[1]]
        return weight * mask

    def mask(self) -> torch.Tensor:
        return self.mask_of(self.mask_real)

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def mask_layers(network: nn.Module, granularity: Granularity, initial: float, mask_of: MaskOf, soft: bool) -> None:
    """Gives every layer that may have one a mask of real values, in place; its weight stays frozen.

    Args:
        network: the network.
        granularity: what shares a value.
        initial: every real value's first.
        mask_of: from real values to the mask, with a gradient.
        soft: whether that has soft values.
    """
    for layer in maskable_layers(network):
        weight = network.get_parameter(weight_of(layer))
        parametrise(network, layer, LearnedMask(weight, granularity, initial, mask_of, soft))


def parametrise(network: nn.Module, layer: str, parametrization: nn.Module) -> None:
    """Lets a layer compute with what a parametrization, which is `Masked`, makes of its weight, in place."""
    path, _, name = weight_of(layer).rpartition(".")
    parametrize.register_parametrization(network.get_submodule(path), name, parametrization)


def masked_layers(network: nn.Module) -> dict[str, Masked]:
    """The parametrizations of a network by their layer."""
    found = ((_PARAMETRIZATION.fullmatch(path), module) for path, module in network.named_modules())
    return {layer_of(f"{match[1]}.{match[2]}"): cast(Masked, module) for match, module in found if match}


def original_weight(network: nn.Module, layer: str) -> nn.Parameter:
    """The weight of a masked layer, of which its parametrization makes what it computes with."""
    path, _, name = weight_of(layer).rpartition(".")
    return network.get_parameter(f"{path}.parametrizations.{name}.original")


@torch.no_grad()
def shared_weights(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a network under the names of its backbone, and of its head; masked weights without the masks."""
    state = {name: tensor for name, tensor in network.state_dict().items() if ".parametrizations." not in name}
    for layer, masked in masked_layers(network).items():
        state[weight_of(layer)] = masked.shared(original_weight(network, layer))
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def body_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is learned below the head but norms: masks, weights or biases, as the method says."""
    others = {*head_parameters(network), *norm_parameters(network)}
    return [parameter for parameter in network.parameters() if parameter.requires_grad and parameter not in others]


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is learned of BatchNorms and LayerNorms: weights and biases, float32 [channels] each."""
    norms = (module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)))
    return [parameter for module in norms for parameter in module.parameters() if parameter.requires_grad]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The head: its weight, [classes, features] or of a convolution [classes, features, 1, 1], and bias [classes]."""
    return list(network.get_submodule(head_path(network)).parameters())


@torch.no_grad()
def pack_masks(network: nn.Module, scale_bits: ScaleBits = 32) -> dict[str, PackedMask]:
    """The masks of a network, packed; a binary mask is packed without soft values whatever `scale_bits` says."""
    return {
        layer: pack_mask(masked.mask().cpu().numpy(), scale_bits if masked.soft else 0)
        for layer, masked in masked_layers(network).items()
    }
