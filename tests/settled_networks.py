"""Random networks through which a signal comes to the end: with BatchNorms as they settle over images.

With any other statistics it dies out in a deep network: all images get the same logits, and no check sees a mask.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def blurred_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Images float32 [count, 3, size, size] that differ as photographs do: noise of pixels is the same once pooled."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(size, size), mode="bilinear")


@torch.no_grad()
def settle(network: nn.Module, size: int, *arguments: Any) -> None:
    """Gives the BatchNorms the statistics of blurred images of a size in pixels; `arguments` follow those images."""
    batch_norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in batch_norms]
    network.eval()
    for module in batch_norms:
        module.train().momentum = 1.0
    network(blurred_images(8, size), *arguments)
    network.eval()
    for module, momentum in zip(batch_norms, momenta, strict=True):
        module.momentum = momentum
        # A channel that is all but dead is not blown up, rounding errors included.
        assert module.running_var is not None
        module.running_var.clamp_(min=float(module.running_var.mean()) / 10)
