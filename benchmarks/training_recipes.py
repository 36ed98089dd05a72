"""Recipes of learning: what each reaches on images that are not learned, over tasks and seeds, in processes.

A recipe is what it changes of `LearningOptions`, under a name. What a trial gave is kept in a file after each, and is
not learned again.
"""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import TaskData, held_out, load_task_data
from ksm_hw.learning.images import kept_for_testing, kept_for_training
from ksm_hw.learning.learn import Epoch, learn
from ksm_hw.learning.options import LearningOptions
from ksm_hw.models.backbones import EFFICIENTNET_LITE0, default_preprocessing, pretrained_backbone

IMAGE_SIZE = 96
Recipe = Mapping[str, Any]  # Fields of `LearningOptions` and their values.


@dataclass(frozen=True)
class Found:
    """What a recipe gave for a task with a seed.

    Attributes:
        recipe, task, seed: which.
        options: of the recipe.
        accuracies: on the images that are not learned after each epoch, in 0…1; empty where learning failed.
        seconds: of CPU after each epoch, of a process that has one thread.
        device: where it was learned.
    """

    recipe: str
    task: str
    seed: int
    options: Recipe
    accuracies: list[float]
    seconds: list[float]
    device: str


@functools.cache
def validated_task(task: str) -> TaskData:
    """A task whose test images are a fifth of its training images, which is not learned; all are kept, scaled."""
    whole = load_task_data(task)
    learned, validation = held_out(whole, 0.2)
    assert validation is not None
    preprocessing = default_preprocessing(EFFICIENTNET_LITE0, IMAGE_SIZE)
    train, test = kept_for_training(learned.train, preprocessing), kept_for_testing(validation, preprocessing)
    return dataclasses.replace(whole, train=train, test=test)


def learned(name: str, options: Recipe, task: str, seed: int) -> Found:
    """Learns a task by a recipe, in this process."""
    torch.set_num_threads(1)
    data, epochs, seconds = validated_task(task), list[Epoch](), list[float]()
    start = time.process_time()

    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        seconds.append(time.process_time() - start)

    backbone, preprocessing = (
        pretrained_backbone(EFFICIENTNET_LITE0),
        default_preprocessing(EFFICIENTNET_LITE0, IMAGE_SIZE),
    )
    try:
        learn(backbone, data, preprocessing, LearningOptions(**options, seed=seed), on_epoch=on_epoch)
        accuracies = [epoch.accuracy for epoch in epochs]
    except UserError:  # It diverged.
        accuracies = []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return Found(name, task, seed, options, accuracies, seconds, device)


def read(path: Path) -> list[Found]:
    """What the file has; nothing where there is none."""
    return [Found(**each) for each in json.loads(path.read_text())] if path.exists() else []


def final_accuracy(found: Iterable[Found], recipe: str) -> float:
    """The mean over a recipe's trials of what each reached, in 0…1; 0 for one that failed."""
    return statistics.fmean([0.0, *each.accuracies][-1] for each in found if each.recipe == recipe)


def whole_seeds(found: Iterable[Found], recipe: str, tasks: Sequence[str]) -> set[int]:
    """The seeds with which a recipe learned all of the tasks."""
    by_seed: dict[int, set[str]] = {}
    for each in found:
        if each.recipe == recipe:
            by_seed.setdefault(each.seed, set()).add(each.task)
    return {seed for seed, learned_tasks in by_seed.items() if learned_tasks >= set(tasks)}


def try_recipes(
    recipes: Mapping[str, Recipe],
    tasks: Sequence[str],
    seeds: int,
    jobs: int,
    output: Path,
    halve: bool = False,
    always: Sequence[str] = (),
) -> list[Found]:
    """Learns what the file has not, and returns what it has then.

    Args:
        recipes: by name.
        tasks: names of sets.
        seeds: from 0 on; all recipes are learned with one before the next.
        jobs: trials beside each other, each in one thread.
        output: the file.
        halve: whether only the better half of the recipes goes on with the next seed.
        always: names of those that go on in any case.
    """
    found = read(output)
    os.environ["OMP_NUM_THREADS"] = "1"  # Of the processes.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        names = list(recipes)
        for seed in range(seeds):
            have = {(each.recipe, each.task, each.seed) for each in found}
            wanted = [key for key in itertools.product(names, tasks, (seed,)) if key not in have]
            futures = [pool.submit(learned, name, recipes[name], task, seed) for name, task, seed in wanted]
            for future in as_completed(futures):
                found.append(future.result())
                output.write_text(json.dumps([dataclasses.asdict(each) for each in found], indent=1) + "\n")
            if halve:
                others = [name for name in names if name not in always]
                others.sort(key=lambda name: final_accuracy(found, name), reverse=True)
                names = [*always, *others[: -(-len(others) // 2)]]
    return found
