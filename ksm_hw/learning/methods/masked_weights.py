"""A network in training: weights that are multiplied by learned masks, and the parts that are learned.

Each masked layer's weight is a parametrization (`torch.nn.utils.parametrize`): the layer keeps the backbone's weight as
`parametrizations.weight.original`, and computes with what the parametrization makes of it.
"""

from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.learning.mask_equations import MaskOf
from ksm_hw.masks.mask_format import Granularity, ScaleBits, group_size, mask_shape
from ksm_hw.masks.soft_mask import PackedMask, pack_mask
from ksm_hw.models.backbones import head_path, maskable_layers


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
    for path in maskable_layers(network):
        layer = network.get_submodule(path)
        parametrization = LearnedMask(cast(torch.Tensor, layer.weight), granularity, initial, mask_of, soft)
        parametrize.register_parametrization(layer, "weight", parametrization)


def masked_layers(network: nn.Module) -> dict[str, Masked]:
    """The parametrizations of a network by the module path of their layer."""
    return {
        path.removesuffix(".parametrizations.weight.0"): cast(Masked, module)
        for path, module in network.named_modules()
        if path.endswith(".parametrizations.weight.0")
    }


@torch.no_grad()
def shared_weights(network: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a network under the names of its backbone, and of its head; masked weights without the masks."""
    state = {name: tensor for name, tensor in network.state_dict().items() if ".parametrizations.weight." not in name}
    for path, layer in masked_layers(network).items():
        original = network.get_parameter(f"{path}.parametrizations.weight.original")
        state[f"{path}.weight"] = layer.shared(original)
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def body_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is learned below the head but BatchNorms: masks, weights or biases, as the method says."""
    others = {*head_parameters(network), *norm_parameters(network)}
    return [parameter for parameter in network.parameters() if parameter.requires_grad and parameter not in others]


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What is learned of BatchNorms: weights and biases, float32 [channels] each."""
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return [parameter for module in norms for parameter in module.parameters() if parameter.requires_grad]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The head: its weight, [classes, features] or of a convolution [classes, features, 1, 1], and bias [classes]."""
    return list(network.get_submodule(head_path(network)).parameters())


@torch.no_grad()
def pack_masks(network: nn.Module, scale_bits: ScaleBits = 32) -> dict[str, PackedMask]:
    """The masks of a network, packed; a binary mask is packed without soft values whatever `scale_bits` says."""
    return {
        path: pack_mask(layer.mask().cpu().numpy(), scale_bits if layer.soft else 0)
        for path, layer in masked_layers(network).items()
    }
