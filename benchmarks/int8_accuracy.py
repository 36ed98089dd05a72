"""Accuracy of learned tasks in int8 beside that in float32, by how biases are corrected.

What int8 computes is the integer model's, in its quicker form (`RoundedNetwork`).

Prints the table of docs/quantisation.md: full test sets, or with --validation training images that calibration did not
see, by which the default is chosen. Points that int8 gains or loses, and behind them the root mean square of what its
logits differ from float32's by. Nothing in the bundle is changed.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ksm_hw.learning.calibration_images import split_batches
from ksm_hw.learning.datasets import TaskData, load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import Bundle, load_bundle, select_tasks
from ksm_hw.masks.preprocessing import Preprocessing, preprocess_batch
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.network import network_of
from ksm_hw.quantising.observers import DEFAULT_OBSERVER, IMAGES, BiasCorrection, ObserverName
from ksm_hw.quantising.rounded_network import RoundedNetwork
from ksm_hw.resources import shipped_bundle

CORRECTIONS: tuple[BiasCorrection, ...] = get_args(BiasCorrection)
_BATCH = 100
_VALIDATED = 600  # Training images, as many as a test set has.


def measured_batches(
    data: TaskData, preprocessing: Preprocessing, validation: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images float32 [N, 3, H, W] and labels [N]: of the test set, or training images behind those calibrated on."""
    if not validation:
        yield from test_batches(data.test, preprocessing, _BATCH)
        return
    others = np.random.default_rng(0).permutation(len(data.train))[IMAGES : IMAGES + _VALIDATED].tolist()
    for start in range(0, len(others), _BATCH):
        chosen = [data.train[index] for index in others[start : start + _BATCH]]
        images = preprocess_batch([image for image, _ in chosen], preprocessing)
        yield torch.from_numpy(images), torch.tensor([label for _, label in chosen])


def row(bundle: Bundle, task: str, observer: ObserverName, validation: bool) -> str:
    """A task's row: the accuracy in float32, and for each correction what int8 gains or loses."""
    pack, data = bundle.packs[task], load_task_data(task)
    network, models = network_of(bundle, pack), {}
    for correction in CORRECTIONS:
        batches = split_batches(data.train, pack.preprocessing, IMAGES, task)
        found = calibrate(bundle, pack, batches, observer, correction=correction)
        own = dataclasses.replace(pack, calibration=found).for_int8
        models[correction] = RoundedNetwork(task_module(bundle, own), network, found.ranges)
    reference = task_module(bundle, pack)
    right, squares, images_seen = dict.fromkeys(["float32", *models], 0), dict.fromkeys(models, 0.0), 0
    with torch.inference_mode():
        for images, labels in measured_batches(data, pack.preprocessing, validation):
            known = reference(images).numpy()
            logits = {"float32": known} | {name: model(images).numpy() for name, model in models.items()}
            for name, found_logits in logits.items():
                right[name] += int(np.sum(found_logits.argmax(1) == labels.numpy()))
            for name in models:
                squares[name] += float(np.square(logits[name] - known).sum()) / known.shape[1]
            images_seen += len(labels)
    share = 100 / images_seen
    points = (
        f"{(right[name] - right['float32']) * share:+.2f}, {np.sqrt(squares[name] / images_seen):.2f}"
        for name in models
    )
    return f"| {task} | {images_seen} | {right['float32'] * share:.2f} % | {' | '.join(points)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--task", default="all", help="one task alone")
    parser.add_argument("--observer", default=DEFAULT_OBSERVER, choices=get_args(ObserverName))
    parser.add_argument("--validation", action="store_true", help="on training images that calibration did not see")
    arguments = parser.parse_args()
    bundle = select_tasks(load_bundle(arguments.bundle), arguments.task)
    print(f"| task | images | float32 | {' | '.join(CORRECTIONS)} |")
    print("|" + " --- |" * (3 + len(CORRECTIONS)))
    for task in bundle.packs:
        print(row(bundle, task, arguments.observer, arguments.validation), flush=True)


if __name__ == "__main__":
    main()
