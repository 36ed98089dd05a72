"""What training costs: a step by its parts and in other ways, images, and recipes by CPU seconds and accuracy.

    python benchmarks/training_cost.py steps      # milliseconds of CPU an image
    python benchmarks/training_cost.py images
    python benchmarks/training_cost.py recipes --tasks fashion-mnist

Times are those of the process (`time.process_time`) with one thread, for machines that do other work: compare numbers
of one run. Accuracies are on a fifth of the training images, which is not learned; test images are never looked at.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ksm_hw.learning.datasets import FolderSplit, TaskData, held_out, load_task_data
from ksm_hw.learning.images import kept_for_training, training_batches
from ksm_hw.learning.learn import Epoch, learn
from ksm_hw.learning.methods.table import method_named, prepared_network
from ksm_hw.learning.options import LearningOptions
from ksm_hw.models.backbones import EFFICIENTNET_LITE0, default_preprocessing, pretrained_backbone

IMAGE_SIZE = 96
TODAY = LearningOptions(epochs=5, mask_rate=1e-3, head_rate=2e-3)
RECIPES = {
    "--head-start, 1 epoch": replace(TODAY, epochs=1, head_start=True, mask_rate=2e-4, norm_rate=1e-3, head_rate=1e-3),
    "--head-start, head alone, 1 epoch": replace(TODAY, epochs=1, head_start=True, head_rate=1e-3, method="head"),
    "as the shipped tasks: 5 epochs": TODAY,
}


def step_time(
    method: str = "ksm",
    size: int = IMAGE_SIZE,
    batch: int = 32,
    channels_last: bool = True,
    bfloat16: bool = False,
    compiled: bool = False,
) -> tuple[float, float]:
    """CPU milliseconds an image of a training step, the median of six, and CPU seconds of the two steps before."""
    torch.manual_seed(0)
    options = LearningOptions(method)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = prepared_network(pretrained_backbone(EFFICIENTNET_LITE0), 10, options).to(memory_format=layout)  # type: ignore[call-overload]
    method_named(method).start_epoch(network, options, 1)
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam([each for each in network.parameters() if each.requires_grad], 1e-4)
    images = torch.randn(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    first = _cpu_seconds(lambda: (step(), step()))
    return 1e3 * statistics.median(_cpu_seconds(step) for _ in range(6)) / batch, first


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def print_steps() -> None:
    """A step in several ways."""
    ways = {
        "KSM, as `train` does it": {},
        "contiguous": {"channels_last": False},
        "bf16 autocast": {"bfloat16": True},
        "bf16 autocast, contiguous": {"bfloat16": True, "channels_last": False},
        "images of 64 pixels": {"size": 64},
        "64 images a step": {"batch": 64},
        "torch.compile": {"compiled": True},
        "fine-tuning": {"method": "fine-tuning"},
        "head alone": {"method": "head"},
        "head alone, bf16 autocast": {"method": "head", "bfloat16": True},
    }
    print("| a step | CPU ms an image | CPU s of the first two steps |\n| --- | --- | --- |")
    for name, way in ways.items():
        milliseconds, first = step_time(**way)  # type: ignore[arg-type]
        print(f"| {name} | {milliseconds:.1f} | {first:.1f} |", flush=True)


def print_images() -> None:
    """Decoding, scaling and augmenting an image, in the first epoch and in later ones."""
    print("| images | CPU ms an image, first epoch | later |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(64)]
        for file in files:
            Image.effect_noise((800, 600), 60).convert("RGB").save(file, quality=90)
        photographs = FolderSplit(("photograph",), files, [0] * len(files))
        for name, split in (("JPEG, 800 × 600", photographs), ("Fashion-MNIST", load_task_data("fashion-mnist").train)):
            for size in (IMAGE_SIZE, 224):
                preprocessing = default_preprocessing(EFFICIENTNET_LITE0, size)
                kept = kept_for_training(split, preprocessing)
                times = []
                for epoch in (1, 2):
                    start = time.process_time()
                    list(training_batches(kept, preprocessing, 32, (0, epoch), True))
                    times.append(time.process_time() - start)
                first, later = (1e3 * seconds / len(split) for seconds in times)
                print(f"| {name}, for {size} pixels | {first:.2f} | {later:.2f} |", flush=True)


def print_recipes(task: str) -> None:
    """Accuracy by CPU seconds of each recipe."""
    whole = load_task_data(task)
    learned, validation = held_out(whole, 0.2)
    assert validation is not None
    data = TaskData(task, whole.classes, learned.train, validation, whole.flip, whole.source, whole.licence)
    preprocessing = default_preprocessing(EFFICIENTNET_LITE0, IMAGE_SIZE)
    print(f"| {task}, {len(data.train)} images | CPU s, accuracy after each epoch |\n| --- | --- |")
    for name, options in RECIPES.items():
        said: list[str] = []
        start = time.process_time()

        def on_epoch(epoch: Epoch, said: list[str] = said, start: float = start) -> None:
            said.append(f"{time.process_time() - start:.0f}: {epoch.accuracy:.1%}")

        learn(pretrained_backbone(EFFICIENTNET_LITE0), data, preprocessing, options, on_epoch=on_epoch)
        print(f"| {name} | {'; '.join(said)} |", flush=True)


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "images", "recipes"))
    parser.add_argument("--tasks", nargs="+", default=["fashion-mnist"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "steps":
        print_steps()
    elif arguments.what == "images":
        print_images()
    else:
        for task in arguments.tasks:
            print_recipes(task)


if __name__ == "__main__":
    main()
