"""Accuracy of learned tasks in int8 beside that in float32: the integer model on the full test sets, by observer.

Prints the table of docs/quantisation.md. Calibration looks at training images; nothing in the bundle is changed.
"""

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ksm_hw.learning.calibration_images import split_batches
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import Bundle, load_bundle, select_tasks
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import quantised_model
from ksm_hw.quantising.network import network_of
from ksm_hw.quantising.observers import IMAGES, ObserverName
from ksm_hw.resources import shipped_bundle

OBSERVERS = get_args(ObserverName)


def row(bundle: Bundle, task: str) -> str:
    """A task's row: the accuracy in float32, and for each observer the points that int8 gains or loses."""
    pack, data = bundle.packs[task], load_task_data(task)
    network = network_of(bundle, pack)
    folded = folded_weights(network, bundle, pack)
    models = {}
    for observer in OBSERVERS:
        batches = split_batches(data.train, pack.preprocessing, IMAGES, task)
        models[observer] = quantised_model(network, folded, calibrate(bundle, pack, batches, observer).ranges)
    reference = task_module(bundle, pack)
    right = dict.fromkeys(["float32", *models], 0)
    with torch.inference_mode():
        for images, labels in test_batches(data.test, pack.preprocessing, 100):
            logits = {"float32": reference(images).numpy()}
            logits |= {observer: model.logits(images.numpy()) for observer, model in models.items()}
            for name, found in logits.items():
                right[name] += int(np.sum(found.argmax(1) == labels.numpy()))
    share = 100 / len(data.test)
    points = " | ".join(f"{(right[observer] - right['float32']) * share:+.2f}" for observer in models)
    return f"| {task} | {len(data.test)} | {right['float32'] * share:.2f} % | {points} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--task", default="all", help="one task alone")
    arguments = parser.parse_args()
    bundle = select_tasks(load_bundle(arguments.bundle), arguments.task)
    print(f"| task | test images | float32 | {' | '.join(OBSERVERS)}, points |")
    print("|" + " --- |" * (3 + len(OBSERVERS)))
    for task in bundle.packs:
        print(row(bundle, task), flush=True)


if __name__ == "__main__":
    main()
