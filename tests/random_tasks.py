"""Seeded random backbones and tasks of every granularity: for checks that need no learned task."""

import numpy as np
import torch

from ksm_hw.masks.bundle import Bundle, sha256_of_tensors
from ksm_hw.masks.soft_mask import GRANULARITIES, Granularity, pack_mask, mask_shape
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    batch_norm_names,
    build_backbone,
    default_preprocessing,
    head_path,
    maskable_layers,
)


def random_bundle(
    backbone: str, image_size: int = 64, granularities: tuple[Granularity, ...] = GRANULARITIES, seed: int = 0
) -> Bundle:
    """A backbone with random weights and one task for each granularity, each with its own number of classes."""
    torch.manual_seed(seed)
    model = build_backbone(backbone)
    tensors = {name: array.copy() for name, array in backbone_tensors(model).items()}
    features = model.get_submodule(head_path(model)).in_features
    layers = maskable_layers(model)
    sha256 = sha256_of_tensors(tensors)
    packs = {}
    for number, granularity in enumerate(granularities):
        generator = np.random.default_rng([seed, number])
        classes = 5 + 2 * number
        masks = {}
        for layer, shape in layers.items():
            values = generator.uniform(0.1, 0.5, mask_shape(shape, granularity)).astype(np.float32)
            masks[layer] = pack_mask(np.where(generator.random(values.shape) < 0.8, np.float32(1), values))
        packs[f"{granularity}-task"] = TaskPack(
            task=f"{granularity}-task",
            classes=tuple(f"class {index}" for index in range(classes)),
            method="random",
            granularity=granularity,
            backbone=backbone,
            backbone_sha256=sha256,
            preprocessing=default_preprocessing(backbone, image_size),
            masks=masks,
            batch_norms={name: _random_statistic(name, tensors[name], generator) for name in batch_norm_names(model)},
            head_weight=(generator.standard_normal((classes, features)) / np.sqrt(features)).astype(np.float32),
            head_bias=generator.standard_normal(classes).astype(np.float32),
        )
    return Bundle(backbone, sha256, tensors, packs)


def _random_statistic(name: str, like: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Scales and variances around 1, shifts and means around 0."""
    spread = generator.uniform(-0.2, 0.2, like.shape)
    return (spread + (1 if name.endswith(("weight", "running_var")) else 0)).astype(np.float32)
