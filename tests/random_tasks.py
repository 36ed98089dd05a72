"""Seeded random backbones and tasks of every granularity: for checks that need no learned task."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from settled_networks import settle

from ksm_hw.learning.growing import wider
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.masks.growth import carried_over
from ksm_hw.masks.mask_format import GRANULARITIES, Granularity, ScaleBits, mask_shape
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import broadcast_mask, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    batch_norm_names,
    build_backbone,
    default_preprocessing,
    head_path,
    layer_norm_names,
    maskable_layers,
)

# The one that compiles and switches quickest, and still has plain and depthwise convolutions, split, concat, shuffling.
SMALL_NETWORK = "shufflenet_v2_x0_5"


def random_bundle(
    backbone: str, image_size: int = 64, granularities: tuple[Granularity, ...] = GRANULARITIES, seed: int = 0
) -> Bundle:
    """A backbone with random weights and one task for each granularity, each with its own number of classes."""
    torch.manual_seed(seed)
    model = build_backbone(backbone)
    tensors = {name: array.copy() for name, array in backbone_tensors(model).items()}
    features = model.get_submodule(head_path(model)).weight.shape[1:]
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
        pack = TaskPack(
            task=f"{granularity}-task",
            classes=tuple(f"class {index}" for index in range(classes)),
            method="random",
            granularity=granularity,
            backbone=backbone,
            backbone_sha256=sha256,
            preprocessing=default_preprocessing(backbone, image_size),
            masks=masks,
            batch_norms={},
            head_weight=(generator.standard_normal((classes, *features)) / np.sqrt(features[0])).astype(np.float32),
            head_bias=generator.standard_normal(classes).astype(np.float32),
        )
        norms = {name: _random_statistic(name, tensors[name], generator) for name in batch_norm_names(model)}
        norms |= _settled_statistics(model, tensors, pack, norms)
        layer_norms = {name: _random_statistic(name, tensors[name], generator) for name in layer_norm_names(model)}
        packs[pack.task] = dataclasses.replace(pack, batch_norms=norms, parameters=layer_norms)
    return Bundle(backbone, sha256, tensors, packs)


def grown(bundle: Bundle, width: float = 1.5) -> Bundle:
    """The tasks in a network of so many times the published width, whose new weights are random and which none uses."""
    image_size = max(pack.preprocessing.image_size for pack in bundle.packs.values())
    network = wider(bundle.backbone, bundle.tensors, width, image_size, seed=0)
    tensors, head = backbone_tensors(network), network.get_submodule(head_path(network)).weight.shape[1:]
    sha256 = sha256_of_tensors(tensors)
    packs = {task: carried_over(pack, bundle.tensors, tensors, sha256, head) for task, pack in bundle.packs.items()}
    return Bundle(bundle.backbone, sha256, tensors, packs, bundle.samples)


def save_three_tasks(backbone: str, samples: Path, folder: Path) -> None:
    """Saves a bundle with three random tasks, two of them with masks of one granularity, each with the same samples."""
    bundle = random_bundle(backbone, image_size=32, granularities=("kernel", "element"))
    other = random_bundle(backbone, image_size=32, granularities=("kernel",), seed=1).packs["kernel-task"]
    other = dataclasses.replace(other, task="other-task", backbone_sha256=bundle.backbone_sha256)
    packs = {**bundle.packs, "other-task": other}
    with tempfile.TemporaryDirectory() as of_tasks:
        for task in packs:
            shutil.copytree(samples, Path(of_tasks) / task)
        save_bundle(dataclasses.replace(bundle, packs=packs, samples=Path(of_tasks)), folder)


def with_scale_bits(pack: TaskPack, bits: ScaleBits) -> TaskPack:
    """The task with its soft values in as many bits."""
    return dataclasses.replace(
        pack, masks={layer: pack_mask(unpack_mask(mask), bits) for layer, mask in pack.masks.items()}
    )


def _random_statistic(name: str, like: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Scales around 1, shifts around 0."""
    return (generator.uniform(-0.2, 0.2, like.shape) + name.endswith("weight")).astype(np.float32)


@torch.no_grad()
def _settled_statistics(
    model: torch.nn.Module, tensors: Mapping[str, np.ndarray], pack: TaskPack, norms: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Means and variances as they settle over images under the task's masks."""
    state = model.state_dict()
    for name, array in norms.items():
        state[name].copy_(torch.from_numpy(array))
    for layer, mask in pack.masks.items():
        weight = tensors[weight_of(layer)]
        masked = weight * broadcast_mask(unpack_mask(mask), weight.shape, pack.granularity)
        state[weight_of(layer)].copy_(torch.from_numpy(masked))
    settle(model, pack.preprocessing.image_size)
    return {name: state[name].numpy().copy() for name in norms if name.endswith(("running_mean", "running_var"))}
