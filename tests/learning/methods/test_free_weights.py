"""Free weights against NumPy: which they are, what a task computes with them, and which it frees again."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_tasks import tiny_pack
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.learning.mask_equations import threshold_mask
from ksm_hw.learning.methods.free_weights import FreeWeight, prune, used_weights
from ksm_hw.learning.methods.masked_weights import masked_layers, shared_weights
from ksm_hw.masks.mask_format import GRANULARITIES
from ksm_hw.masks.soft_mask import broadcast_mask, pack_mask
from ksm_hw.masks.task_pack import TaskPack

SHAPE = (6, 16, 3, 3)


def task_with(mask: np.ndarray | None, granularity: str = "element") -> TaskPack:
    masks = {} if mask is None else {"layer": pack_mask(mask)}
    return dataclasses.replace(tiny_pack("task"), granularity=granularity, masks=masks)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_weight_is_used_where_a_mask_is_not_0(granularity: str) -> None:
    shape = {"kernel": (6, 16, 1, 1), "element": SHAPE, "channel": (6, 1, 1, 1), "group": (6, 2, 1, 1)}[granularity]
    values = np.random.default_rng(0).choice(np.array([0, 0.25, -1, 1], np.float32), shape)
    found = used_weights({"layer": SHAPE}, [task_with(values, granularity)])["layer"]
    assert np.array_equal(found, np.broadcast_to(broadcast_mask(values, SHAPE, granularity) != 0, SHAPE))


def test_all_tasks_count_and_one_without_a_mask_uses_all() -> None:
    first, second = (np.zeros(SHAPE, np.float32) for _ in range(2))
    first[0, 0, 0, 0], second[5, 1, 2, 2] = 1, 1
    found = used_weights({"layer": SHAPE}, [task_with(first), task_with(second)])["layer"]
    assert found.sum() == 2 and found[0, 0, 0, 0] and found[5, 1, 2, 2]
    assert used_weights({"layer": SHAPE}, [task_with(first), task_with(None)])["layer"].all()
    assert not used_weights({"layer": SHAPE}, [])["layer"].any()


def free_layer(picks: bool) -> tuple[nn.Conv2d, FreeWeight, np.ndarray]:
    """A layer of whose weights a third is fixed; a part of those is not picked, and a part of the others pruned."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 6, 3, bias=False)
    generator = np.random.default_rng(0)
    fixed = generator.random(SHAPE) < 1 / 3
    mask_of = (lambda values: threshold_mask(values)) if picks else None
    free = FreeWeight(torch.from_numpy(fixed), mask_of, 1e-2)
    parametrize.register_parametrization(layer, "weight", free)
    kept = ~fixed & (generator.random(SHAPE) < 0.5)
    free.kept.copy_(torch.from_numpy(kept))
    if picks:
        with torch.no_grad():
            free.mask_real.copy_(torch.from_numpy(generator.uniform(0, 1e-2, SHAPE).astype(np.float32)))
    return layer, free, layer.parametrizations.weight.original.detach().numpy().copy()


@pytest.mark.parametrize("picks", [False, True])
def test_the_weight_its_mask_and_what_stays_of_it(picks: bool) -> None:
    layer, free, original = free_layer(picks)
    fixed, kept = free.fixed.numpy(), free.kept.numpy()
    picked = free.mask_real.detach().numpy() > 5e-3 if picks else np.ones(SHAPE, np.bool_)
    mask = (fixed & picked) | kept
    assert np.array_equal(layer.weight.detach().numpy(), original * mask)
    assert np.array_equal(free.mask().numpy(), mask.astype(np.float32))
    shared = shared_weights(nn.Sequential(layer))["0.weight"]
    assert np.array_equal(shared, np.where(fixed | kept, original, 0))
    assert np.array_equal(shared * mask, layer.weight.detach().numpy()), "the pack over the new backbone is the task"


@pytest.mark.parametrize("picks", [False, True])
def test_gradients_reach_what_the_task_owns_and_what_picks_alone(picks: bool) -> None:
    layer, free, original = free_layer(picks)
    upstream = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    (layer.weight * torch.from_numpy(upstream)).sum().backward()
    gradient = layer.parametrizations.weight.original.grad.numpy()
    assert np.array_equal(gradient, upstream * free.kept.numpy())
    if picks:
        # The straight-through estimator is the identity: the mask's gradient is that of the product.
        assert np.allclose(free.mask_real.grad.numpy(), upstream * original * free.fixed.numpy(), rtol=1e-6)


def test_adam_changes_no_bit_of_a_fixed_weight() -> None:
    layer, free, original = free_layer(picks=True)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 16, 4, 4)).square().sum().backward()
        optimizer.step()
    now, fixed = layer.parametrizations.weight.original.detach().numpy(), free.fixed.numpy()
    assert np.array_equal(now[fixed], original[fixed])
    assert (now[free.kept.numpy()] != original[free.kept.numpy()]).all()


def test_pruning_frees_the_weights_of_least_magnitude_in_a_layer() -> None:
    layer, free, original = free_layer(picks=False)
    free.kept.copy_(~free.fixed)
    own = ~free.fixed.numpy()
    for share in (0.25, 0.75):  # Of all that was free: the second time counts what the first freed.
        prune(nn.Sequential(layer), share)
        count = round(share * own.sum())
        least = np.sort(np.abs(original[own]))[count - 1]
        assert np.array_equal(free.kept.numpy(), own & (np.abs(original) > least))
    assert masked_layers(nn.Sequential(layer))["0"].mask().sum() == free.fixed.sum() + own.sum() - count


def test_what_was_pruned_stays_pruned_whatever_its_old_value() -> None:
    layer, free, _ = free_layer(picks=False)
    pruned = ~free.fixed & ~free.kept
    with torch.no_grad():
        layer.parametrizations.weight.original[pruned] = 100
    prune(nn.Sequential(layer), 0.9)
    assert not (free.kept & pruned).any()
