"""A head that begins where the head alone would end: fitted to the features of one pass over the images.

A fresh head spends the first epochs of a task, each a forward and a backward pass through the network, on what a linear
model finds in seconds once the features are there. Masks and weights that learn meanwhile follow a head that knows
nothing yet. The features are those of the backbone's own BatchNorm statistics, which therefore stay: statistics of each
batch would give the head others.
"""

from collections.abc import Iterable

import torch
from torch import nn

from ksm_hw.models.backbones import head_path

STEPS = 300
_BATCH, _RATE = 128, 3e-3


def start_head(network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], seed: int) -> bool:
    """Fits the head to the features that the network gives in evaluation mode, in place; the network stays in it.

    Args:
        network: with a fresh head, on its device.
        batches: images float32 [N, 3, H, W] and labels int64 [N], on the same device.
        seed: of the order in which images are taken.

    Returns:
        Whether it was fitted: not where the head is a convolution, behind which other layers come.
    """
    head = network.get_submodule(head_path(network))
    if not isinstance(head, nn.Linear):
        return False
    device = head.weight.device
    features, labels = [], []
    handle = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].detach()))
    network.eval()
    try:
        with torch.no_grad():
            for images, found in batches:
                network(images)
                labels.append(found)
    finally:
        handle.remove()
    inputs, targets = torch.cat(features), torch.cat(labels)
    optimizer = torch.optim.Adam(head.parameters(), _RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(inputs), (_BATCH,), generator=generator).to(device)
        loss = nn.functional.cross_entropy(head(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return True


def keep_statistics(network: nn.Module) -> None:
    """Lets BatchNorms compute with the statistics that they have, in place; their weights and biases may be learned."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
