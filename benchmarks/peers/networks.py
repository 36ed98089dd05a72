"""The networks that all engines run: a bundle for ksm-hw, and each of its tasks as a PyTorch program.

    python -m peers.networks BACKBONE FOLDER TASKS CLASSES

writes FOLDER/bundle, and for each task FOLDER/TASK/ with `network.pt2` (an exported program of the same function, the
mask multiplied into the weights), `image.npy` and `logits.npy`, what PyTorch makes of that image.

No package carries the ImageNet weights of torchvision's networks, and speed does not depend on weights: theirs are
random, with BatchNorm statistics that settled over images, so that the signal neither dies nor overflows.
EfficientNet-Lite0 has its real weights. Masks are random and kernel-wise: a fifth of the kernels of each layer is
scaled down, by factors in 8 bits, as in the tasks that ship.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ksm_hw.files.staging import changed_folder, files_in, staged_files
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.masks.mask_format import mask_shape
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import broadcast_mask, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    EFFICIENTNET_LITE0,
    backbone_tensors,
    batch_norm_names,
    build_backbone,
    default_preprocessing,
    head_path,
    maskable_layers,
    pretrained_backbone,
)
from ksm_hw.models.task_module import task_module
from peers.catalogue import IMAGE_SIZE, IMAGE_SIZES, RECIPE

SCALED_SHARE = 0.2  # Of the kernels of a layer.


def make_bundle(
    backbone: str, tasks: int, classes: int, scaled_share: float = SCALED_SHARE, pretrained: bool = True
) -> Bundle:
    """A backbone and tasks over it, the same ones at every call; its real weights only where they are wanted."""
    torch.manual_seed(0)
    real = pretrained and backbone == EFFICIENTNET_LITE0
    model = pretrained_backbone(backbone) if real else build_backbone(backbone)
    tensors = {name: array.copy() for name, array in backbone_tensors(model).items()}
    bundle = Bundle(backbone, sha256_of_tensors(tensors), tensors, {})
    packs = [_task(bundle, model, number, classes, scaled_share) for number in range(tasks)]
    return dataclasses.replace(bundle, packs={pack.task: pack for pack in packs})


def _task(bundle: Bundle, model: nn.Module, number: int, classes: int, scaled_share: float) -> TaskPack:
    generator = np.random.default_rng(number)
    state = model.state_dict()
    masks = {}
    for layer, shape in maskable_layers(model).items():
        values = generator.uniform(0.1, 0.5, mask_shape(shape, "kernel")).astype(np.float32)
        values[generator.random(values.shape) >= scaled_share] = 1
        masks[layer] = pack_mask(values, scale_bits=8)
        weight = bundle.tensors[weight_of(layer)]
        mask = broadcast_mask(unpack_mask(masks[layer]), weight.shape, "kernel")
        state[weight_of(layer)].copy_(torch.from_numpy(weight * mask))
    size = IMAGE_SIZES.get(bundle.backbone, IMAGE_SIZE)
    _settle(model, size)
    features = model.get_submodule(head_path(model)).weight.shape[1:]
    return TaskPack(
        task=f"task-{number:02}",
        classes=tuple(f"class {index}" for index in range(classes)),
        method="random",
        granularity="kernel",
        backbone=bundle.backbone,
        backbone_sha256=bundle.backbone_sha256,
        preprocessing=default_preprocessing(bundle.backbone, size),
        masks=masks,
        batch_norms={name: state[name].numpy().copy() for name in batch_norm_names(model)},
        head_weight=(generator.standard_normal((classes, *features)) / np.sqrt(features[0])).astype(np.float32),
        head_bias=generator.standard_normal(classes).astype(np.float32),
    )


@torch.no_grad()
def _settle(model: nn.Module, size: int) -> None:
    """Sets the statistics of the BatchNorms to those of a batch of images of a size in pixels."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(_images(8, size))
    for norm in norms:
        # A channel that is all but dead is not blown up, rounding errors included.
        norm.running_var.clamp_(min=float(norm.running_var.mean()) / 10)


def _images(count: int, size: int) -> torch.Tensor:
    """Blurred noise of a size in pixels: neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, size=(size, size), mode="bilinear")


@torch.no_grad()
def write_networks(backbone: str, folder: Path, tasks: int, classes: int) -> None:
    """Writes the bundle, and the program, the image and the logits of each task."""
    bundle = make_bundle(backbone, tasks, classes)
    image = _images(1, next(iter(bundle.packs.values())).preprocessing.image_size)
    with changed_folder(folder), staged_files(folder, "manifest.json", files_in(folder)) as temporary:
        (temporary / "bundle").mkdir()
        save_bundle(bundle, temporary / "bundle")
        for task, pack in bundle.packs.items():
            module = task_module(bundle, pack)
            (temporary / task).mkdir()
            torch.export.save(torch.export.export(module, (image,)), temporary / task / "network.pt2")
            np.save(temporary / task / "image.npy", image.numpy())
            np.save(temporary / task / "logits.npy", module(image).numpy())
        (temporary / "manifest.json").write_text(json.dumps({"recipe": RECIPE, "tasks": tasks}) + "\n")


if __name__ == "__main__":
    write_networks(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
