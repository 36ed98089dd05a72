"""Piggyback's mask against NumPy."""

import numpy as np
import torch
from torch import nn

from ksm_hw.learning.mask_equations import threshold_mask
from ksm_hw.learning.methods.masked_weights import masked_layers
from ksm_hw.learning.methods.method import train_mode
from ksm_hw.learning.methods.piggyback import PIGGYBACK
from ksm_hw.learning.options import LearningOptions


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).requires_grad_(False)


def test_a_mask_is_1_above_the_threshold_and_its_gradient_is_the_identity_s() -> None:
    values = np.random.default_rng(0).uniform(-5e-3, 1.5e-2, (4, 3, 3, 3)).astype(np.float32)
    values.flat[0] = np.float32(5e-3)
    mask_real = torch.from_numpy(values).requires_grad_()
    mask = threshold_mask(mask_real)
    assert np.array_equal(mask.detach().numpy(), (values > np.float32(5e-3)).astype(np.float32))
    assert mask.flatten()[0] == 0, "at the threshold the mask is 0, unlike KSM's"
    upstream = np.random.default_rng(1).standard_normal(values.shape).astype(np.float32)
    (mask * torch.from_numpy(upstream)).sum().backward()
    assert np.array_equal(mask_real.grad.numpy(), upstream)


def test_masks_are_learned_by_element_over_frozen_weights_and_batch_norms() -> None:
    learned = network()
    PIGGYBACK.prepare(learned, LearningOptions("piggyback"), [])
    layer = masked_layers(learned)["0"]
    assert (layer.mask_real == 1e-2).all() and layer.mask_real.shape == (4, 3, 3, 3)
    assert [name for name, parameter in learned.named_parameters() if parameter.requires_grad] == [
        "0.parametrizations.weight.0.mask_real"
    ]
    before = learned.state_dict()["1.running_mean"].clone()
    train_mode(learned)
    learned(torch.randn(2, 3, 8, 8))
    assert learned.training and torch.equal(learned.state_dict()["1.running_mean"], before)
