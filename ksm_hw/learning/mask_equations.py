"""The equations of masks: from learned real values to the soft mask of KSM, and to the binary one of Piggyback.

Sources: Yang, He, Zhang, Fan, "KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning", CVPR 2021, arXiv
2009.05668, and the parameter values of its published code. Mallya, Davis, Lazebnik, "Piggyback: Adapting a Single
Network to Multiple Tasks by Learning to Mask Weights", ECCV 2018, arXiv 1801.06519; CPG picks weights in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MaskConstants:
    """The paper's constants.

    Attributes:
        initial: value that every real-valued mask starts from.
        threshold: a real-valued mask at or above it is 1.
        slope, temperature: the binary mask's gradient is that of sigmoid(slope·(mask_real - threshold)/temperature).
        scale_weight: weight of the soft values; 0 learns a binary mask.
    """

    initial: float = 1e-2
    threshold: float = 5e-3
    slope: float = 1200.0
    temperature: float = 100.0
    scale_weight: float = 0.5


PAPER = MaskConstants()

MaskOf = Callable[[torch.Tensor], torch.Tensor]  # From real values to the mask.
Binarise = Callable[[torch.Tensor, MaskConstants], torch.Tensor]


def binary_mask(mask_real: torch.Tensor, constants: MaskConstants = PAPER) -> torch.Tensor:
    """1 where mask_real - threshold >= 0, else 0, in mask_real's shape and dtype; the gradient is the sigmoid's.

    Forward is the hard step; backward is d/dm sigmoid(slope·(m - threshold)/temperature) (straight-through).
    """
    centred = mask_real - constants.threshold
    hard = (centred >= 0).to(mask_real.dtype)
    soft = torch.sigmoid(constants.slope / constants.temperature * centred)
    # hard + (soft - soft) rather than (hard + soft) - soft: the forward value is exactly 0 or 1.
    return hard + (soft - soft.detach())


def scale(mask_real: torch.Tensor, binary: torch.Tensor) -> torch.Tensor:
    """The learned values at the zeros of the binary mask, min-max normalised over the layer; 0 elsewhere; no gradient.

    a = mask_real·(1 - binary); where a != 0: (a - min a)/(max a - min a), min and max over the whole of a. A layer
    whose range is 0 has nothing to normalise and gets 0.
    """
    a = (mask_real * (1 - binary)).detach()
    low, high = a.min(), a.max()
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return torch.where(a != 0, (a - low) / span, torch.zeros_like(a))


def soft_mask(mask_real: torch.Tensor, constants: MaskConstants = PAPER) -> torch.Tensor:
    """soft_mask = binary_mask + scale_weight·scale, in mask_real's shape; gradient through the binary mask alone."""
    binary = binary_mask(mask_real, constants)
    if constants.scale_weight == 0:
        return binary
    return binary + constants.scale_weight * scale(mask_real, binary)


def threshold_mask(mask_real: torch.Tensor, constants: MaskConstants = PAPER) -> torch.Tensor:
    """Piggyback's binary mask: 1 where mask_real > threshold, else 0; the gradient is that of the identity."""
    hard = (mask_real > constants.threshold).to(mask_real.dtype)
    return hard + (mask_real - mask_real.detach())
