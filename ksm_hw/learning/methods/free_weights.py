"""Weights that no task uses yet: a task learns them, and prunes again what it needs least.

A bundle's tasks own the weights that their masks do not make 0. PackNet's and CPG's files say owners by number; here
the masks themselves say them, so that tasks of every method, learned or imported, count.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.learning.mask_equations import MaskOf
from ksm_hw.learning.methods.masked_weights import masked_layers, original_weight, parametrise
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.soft_mask import broadcast_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import maskable_layers

BoolArray = npt.NDArray[np.bool_]


def used_weights(shapes: Mapping[str, tuple[int, ...]], tasks: Sequence[TaskPack]) -> dict[str, BoolArray]:
    """Which weights some task uses, by layer, in the weights' shapes.

    Args:
        shapes: of the weights of the layers, which the tasks' masks have.
        tasks: the tasks. One without a mask for a layer uses all of its weights.
    """
    used = {layer: np.zeros(shape, np.bool_) for layer, shape in shapes.items()}
    for pack in tasks:
        for layer, shape in shapes.items():
            if (packed := pack.masks.get(layer)) is None:
                used[layer][:] = True
                continue
            mask = broadcast_mask(unpack_mask(packed), shape, pack.granularity) != 0
            used[layer] |= np.broadcast_to(mask, shape)
    return used


def free_share(shapes: Mapping[str, tuple[int, ...]], tasks: Sequence[TaskPack]) -> float:
    """The share in 0…1 of the weights that no task uses; arguments as `used_weights` has them."""
    used = used_weights(shapes, tasks).values()
    return 1 - sum(int(layer.sum()) for layer in used) / sum(layer.size for layer in used)


class FreeWeight(nn.Module):
    """A weight of which a task learns what is free, and computes with that and with what older tasks own.

    Attributes:
        fixed: bool, in the weight's shape: what older tasks own; it never changes.
        kept: bool, likewise: what the task owns, all that is free until it is pruned.
        mask_real: real values that pick among the fixed weights, float32; absent where all are picked.
    """

    soft = False
    fixed: torch.Tensor
    kept: torch.Tensor

    def __init__(self, fixed: torch.Tensor, mask_of: MaskOf | None, initial: float) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed)
        self.register_buffer("kept", ~fixed)
        self.mask_of = mask_of
        if mask_of is not None:
            self.mask_real = nn.Parameter(torch.full(fixed.shape, initial))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        own = torch.where(self.kept, weight, 0.0)
        fixed = weight.detach()
        if self.mask_of is not None:
            fixed = fixed * self.mask_of(self.mask_real)
        return torch.where(self.fixed, fixed, own)

    def mask(self) -> torch.Tensor:
        picked = self.fixed if self.mask_of is None else self.fixed & (self.mask_of(self.mask_real) != 0)
        return (picked | self.kept).float()

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.fixed | self.kept, weight, 0.0)


def learn_free_weights(
    network: nn.Module, older: Sequence[TaskPack], mask_of: MaskOf | None = None, initial: float = 0.0
) -> None:
    """Lets a task learn the weights that no older task uses, in place.

    Args:
        network: over the backbone of the older tasks.
        older: the tasks.
        mask_of: from real values to the binary mask that picks among the weights of older tasks; None picks all.
        initial: every real value's first.
    """
    for layer, fixed in used_weights(maskable_layers(network), older).items():
        network.get_parameter(weight_of(layer)).requires_grad_(True)
        # Without an older task there is nothing to pick from.
        parametrise(network, layer, FreeWeight(torch.from_numpy(fixed), mask_of if older else None, initial))


@torch.no_grad()
def prune(network: nn.Module, share: float) -> None:
    """Frees a share of the task's weights in each layer, those of the least magnitude, in place.

    The share is of all that was free for the task: what was pruned before counts.
    """
    for layer, masked in masked_layers(network).items():
        assert isinstance(masked, FreeWeight)
        weight = original_weight(network, layer)
        free = ~masked.fixed
        count = round(share * int(free.sum()))
        # What was pruned is 0, and sorts first.
        magnitudes = torch.where(masked.kept, weight.abs(), 0.0)[free]
        smallest = magnitudes.argsort(stable=True)[:count]
        kept = torch.ones_like(magnitudes, dtype=torch.bool)
        kept[smallest] = False
        masked.kept[free] = kept
