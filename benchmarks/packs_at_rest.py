"""Bytes of a task's masks at rest against accuracy: by granularity, bits of soft values, and entropy coding.

A learned task's masks are stored in other ways, and the accuracy is PyTorch's over its full test set: nothing is
learned again. Kernel-wise masks (KSM) become masks of channels and groups by their means, and of elements without a
loss. The entropy is of order 0, of each layer's bits and codes by themselves: no coder of single symbols takes fewer
bytes. Prints the table of docs/deployed_bytes.md.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.mask_format import GRANULARITIES, GROUP_SIZE, Granularity, ScaleBits
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.soft_mask import PackedMask, binary_mask, pack_mask, soft_codes, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.resources import shipped_bundle

Float32Array = npt.NDArray[np.float32]
BITS: tuple[ScaleBits, ...] = (32, 8, 4, 0)


def in_granularity(
    mask: npt.NDArray[np.float32], weight: tuple[int, ...], wanted: Granularity
) -> npt.NDArray[np.float32]:
    """A kernel-wise soft mask of a weight as one of another granularity."""
    match wanted:
        case "kernel":
            return mask
        case "element":
            return np.broadcast_to(mask, weight).astype(np.float32)
        case "channel":
            return mask.mean(axis=1, keepdims=True)
        case "group":
            starts = range(0, mask.shape[1], GROUP_SIZE)
            return np.concatenate([mask[:, at : at + GROUP_SIZE].mean(axis=1, keepdims=True) for at in starts], 1)


def stored_as(bundle: Bundle, pack: TaskPack, granularity: Granularity, bits: ScaleBits) -> TaskPack:
    """The task with its masks stored in another way; with 0 bits every soft value is 0."""
    masks = {}
    for layer, packed in pack.masks.items():
        mask = in_granularity(unpack_mask(packed), bundle.tensors[weight_of(layer)].shape, granularity)
        masks[layer] = pack_mask((mask == 1).astype(np.float32) if bits == 0 else mask, bits)
    return dataclasses.replace(pack, granularity=granularity, masks=masks)


def entropy_bytes(masks: list[PackedMask]) -> float:
    """What the masks take at the entropy of their bits and codes; float32 values as they are."""
    total = 0.0
    for mask in masks:
        total += _entropy(binary_mask(mask)) / 8
        total += _entropy(soft_codes(mask)) / 8 if mask.coded else mask.scale.nbytes
    return total


def _entropy(symbols: npt.NDArray[np.generic]) -> float:
    """Bits that the symbols take together."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(sum(count * math.log2(symbols.size / count) for count in counts))


@torch.inference_mode()
def accuracies(bundle: Bundle, packs: list[TaskPack]) -> list[float]:
    """The share in 0…1 of the test images of the task that each of its packs tells right."""
    networks, right, images_seen = [task_module(bundle, pack) for pack in packs], np.zeros(len(packs)), 0
    for images, labels in test_batches(load_task_data(packs[0].task).test, packs[0].preprocessing, 50):
        right += [int((network(images).argmax(1) == labels).sum()) for network in networks]
        images_seen += len(labels)
    return list(right / images_seen)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--task", default="glyphs")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    pack = bundle.packs[arguments.task]
    packs = [stored_as(bundle, pack, granularity, bits) for granularity in GRANULARITIES for bits in BITS]
    print(f"| granularity | bits | masks of {arguments.task}, KB | at their entropy | accuracy |")
    print("| --- | --- | --- | --- | --- |")
    for one, accuracy in zip(packs, accuracies(bundle, packs), strict=True):
        masks = list(one.masks.values())
        stored, coded = sum(mask.nbytes for mask in masks) / 1e3, entropy_bytes(masks) / 1e3
        print(f"| {one.granularity} | {masks[0].scale_bits} | {stored:.0f} | {coded:.0f} | {accuracy:.2%} |")


if __name__ == "__main__":
    main()
