"""What training costs: a step by its parts and in other ways, images, and recipes by CPU seconds and accuracy.

    python benchmarks/training_cost.py steps      # milliseconds of CPU an image
    python benchmarks/training_cost.py images
    python benchmarks/training_cost.py recipes --seeds 3 --device cuda --jobs 16 --halve -o recipes.json
    python benchmarks/training_cost.py recipes --page -o recipes.json      # what they cost on this CPU

Times are those of the process (`time.process_time`) with one thread, for machines that do other work: compare numbers
of one run. Accuracies are on a fifth of the training images, which is not learned; test images are never looked at.
They are the same on a GPU, which finds them sooner; what a recipe costs is measured on a CPU by its steps.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from training_recipes import IMAGE_SIZE, Found, Recipe, final_accuracy, read, try_recipes, whole_seeds

from ksm_hw.learning.datasets import FolderSplit, load_task_data
from ksm_hw.learning.head_start import keep_statistics
from ksm_hw.learning.images import kept_for_training, training_batches
from ksm_hw.learning.methods.table import method_named, prepared_network
from ksm_hw.learning.options import LearningOptions
from ksm_hw.models.backbones import EFFICIENTNET_LITE0, default_preprocessing, pretrained_backbone

TRAIN = LearningOptions()
TODAY = {"epochs": 5, "mask_rate": 1e-3, "head_rate": 2e-3}
HEAD_START = {"epochs": 1, "head_start": True, "norm_rate": 1e-3, "head_rate": 1e-3}
BASE = "as the shipped tasks: 5 epochs"
RECIPES: dict[str, Recipe] = {
    BASE: TODAY,
    "5 epochs, --mask-rate 4e-4": {**TODAY, "mask_rate": 4e-4},
    "--head-start, 1 epoch": {**HEAD_START, "mask_rate": 2e-4},
    "--head-start, head alone, 1 epoch": {"epochs": 1, "head_start": True, "head_rate": 1e-3, "method": "head"},
}
# Fields of recipes that were tried in a copy and are no options, for they gained nothing; a step costs the same.
NOT_BUILT = ("warm_up", "label_smoothing", "dropout", "start_steps")


def step_time(
    options: LearningOptions = TRAIN,
    size: int = IMAGE_SIZE,
    channels_last: bool = True,
    bfloat16: bool = False,
    compiled: bool = False,
) -> tuple[float, float]:
    """CPU milliseconds an image of a training step, the median of six, and CPU seconds of the two steps before."""
    torch.manual_seed(0)
    batch = options.batch_size
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = prepared_network(pretrained_backbone(EFFICIENTNET_LITE0), 10, options).to(memory_format=layout)  # type: ignore[call-overload]
    method_named(options.method).start_epoch(network, options, 1)
    if options.head_start:
        keep_statistics(network)
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


@torch.no_grad()
def forward_time(size: int = IMAGE_SIZE, batch: int = 32) -> float:
    """CPU milliseconds an image of the features that a head starts from, the median of six."""
    network = pretrained_backbone(EFFICIENTNET_LITE0).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    network(images)
    return 1e3 * statistics.median(_cpu_seconds(lambda: network(images)) for _ in range(6)) / batch


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
        "16 images a step": {"options": replace(TRAIN, batch_size=16)},
        "64 images a step": {"options": replace(TRAIN, batch_size=64)},
        "--head-start": {"options": replace(TRAIN, head_start=True)},
        "torch.compile": {"compiled": True},
        "fine-tuning": {"options": LearningOptions("fine-tuning")},
        "head alone": {"options": LearningOptions("head")},
        "head alone, bf16 autocast": {"options": LearningOptions("head"), "bfloat16": True},
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


@functools.cache
def epoch_and_start(method: str, batch: int, head_start: bool) -> tuple[float, float]:
    """CPU milliseconds of a training image in an epoch, and in the pass that a head starts from."""
    options = LearningOptions(method, batch_size=batch, head_start=head_start)
    return step_time(options)[0], forward_time() if head_start else 0.0


def recipe_cost(recipe: Recipe) -> float | None:
    """CPU milliseconds of a training image through all of a recipe; None where images have several sizes."""
    if "image_sizes" in recipe:
        return None
    options = LearningOptions(**{name: value for name, value in recipe.items() if name not in NOT_BUILT})
    epoch, start = epoch_and_start(options.method, options.batch_size, options.head_start)
    return start + options.epochs * epoch


def print_recipes(found: list[Found], tasks: list[str]) -> None:
    """What recipes reached, the mean over the seeds that have all tasks, and what they cost on this CPU."""
    recipes = {each.recipe: each.options for each in found}
    costs = {name: recipe_cost(options) for name, options in recipes.items()}
    print(f"| recipe | seeds | {' | '.join(tasks)} | mean | beside today's, points | CPU ms an image | share |")
    print("|" + " --- |" * (len(tasks) + 6))
    for name in sorted(recipes, key=lambda name: -final_accuracy(found, name)):
        seeds = whole_seeds(found, name, tasks)
        mine = [each for each in found if each.seed in seeds]
        shown = [f"{final_accuracy([each for each in mine if each.task == task], name):.1%}" for task in tasks]
        mean = final_accuracy(mine, name)
        beside = (
            f"{100 * (mean - final_accuracy(mine, BASE)):+.1f}" if seeds <= whole_seeds(found, BASE, tasks) else "—"
        )
        cost, base = costs[name], costs.get(BASE)
        spent = "— | —" if cost is None or base is None else f"{cost:.0f} | {cost / base:.0%}"
        print(f"| {name} | {len(seeds)} | {' | '.join(shown)} | {mean:.1%} | {beside} | {spent} |", flush=True)


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "images", "recipes"))
    parser.add_argument("--tasks", nargs="+", default=["fashion-mnist", "clipart", "emoji", "glyphs"])
    parser.add_argument("--recipes", type=Path, help="JSON of recipes by name: fields of LearningOptions; or built in")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--halve", action="store_true", help="go on with the better half of the recipes at each seed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where recipes are learned")
    parser.add_argument("--jobs", type=int, default=1, help="recipes learned beside each other")
    parser.add_argument("--page", action="store_true", help="learn nothing: what the file has, and what it costs here")
    parser.add_argument("-o", "--output", type=Path, default=Path("recipes.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "steps":
        print_steps()
    elif arguments.what == "images":
        print_images()
    elif arguments.page:
        print_recipes(read(arguments.output), arguments.tasks)
    else:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            parser.error("PyTorch finds no GPU here. Leave out --device cuda.")
        if arguments.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        recipes = json.loads(arguments.recipes.read_text()) if arguments.recipes else RECIPES
        try_recipes(
            recipes, arguments.tasks, arguments.seeds, arguments.jobs, arguments.output, arguments.halve,
            [name for name in recipes if name == BASE],
        )  # fmt: skip


if __name__ == "__main__":
    main()
