"""Learns the shipped tasks on all images of their sets, and writes docs/learned_tasks.md and its JSON.

    python benchmarks/learned_tasks.py --jobs 8          # a GPU is used where there is one
    python benchmarks/learned_tasks.py --jobs 8 --ship   # and the first seed's tasks become those that ship

Each task by KSM and by the head alone, with three seeds, by `ksm-hw train` in processes of their own under
artifacts/learned-tasks; what is there is not learned again. The rates are those that were best on a validation part of
the training images (benchmarks/learning_rates.py). What ships is seed 0's, whatever the others reached; calibrate it
behind that: `ksm-hw calibrate`.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.learn import measure_accuracy
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.models.backbones import EFFICIENTNET_LITE0
from ksm_hw.models.task_module import task_module
from ksm_hw.report.learning_trials import LearningTrial, bundle_of, learn_trials
from ksm_hw.resources import shipped_bundle

SEEDS = (0, 1, 2)
COMMON = ["--backbone", EFFICIENTNET_LITE0, "--image-size", "96", "--all-images"]
FEW_EPOCHS = ["--epochs", "4", "--batch-size", "128"]  # Of 60,000 images: steps enough.
MORE_EPOCHS = ["--epochs", "20", "--batch-size", "32"]
ONLY_HEAD = ["--head-rate", "1e-2"]
# Four times as many images a step: twice the rate.
RECIPES = {
    "fashion-mnist": {
        "ksm": [*COMMON, *FEW_EPOCHS, "--mask-rate", "8e-4", "--head-rate", "4e-3", "--scale-bits", "8"],
        "head": [*COMMON, *FEW_EPOCHS, *ONLY_HEAD],
    },
    **{
        task: {
            "ksm": [*COMMON, *MORE_EPOCHS, "--mask-rate", "4e-4", "--head-rate", "2e-3", "--scale-bits", "8"],
            "head": [*COMMON, *MORE_EPOCHS, *ONLY_HEAD],
        }
        for task in ("clipart", "emoji", "glyphs")
    },
}
REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "artifacts" / "learned-tasks"
RESULTS = REPOSITORY / "docs" / "learned_tasks.json"
PAGE = REPOSITORY / "docs" / "learned_tasks.md"

TEXT = """\
Backbone: {backbone} with its ImageNet weights, 96×96 pixels, **all** images of the sets. Seeds 0 / 1 / 2; what ships is
seed 0's. Accuracy is that of the stored task, soft values in 8 bits, on all test images, and on the 600 that a small
machine reads. Learned on one {machine}, up to 18 tasks beside each other: the seconds are an upper bound. Where seeds
are missing the time on that machine had ended. Rates: those that were best on a fifth of 2000 training images
(docs/comparison.md), for Fashion-MNIST's larger batches doubled; test images chose nothing. 96 pixels, as what the
demo, the tests and the published latencies run on small CPUs.

The tasks that shipped before (2000 images, 5 epochs at 1e-3) reached 86.7, 66.2, 71.5 and 91.7 % of the same 600 test
images. Written by `python benchmarks/learned_tasks.py --jobs 18 --ship`.
"""


def learn_all(jobs: int) -> dict[str, Any]:
    """What each method reached on each task, by seed: accuracy in 0…1, seconds of the epochs, and the machine."""
    results: dict[str, Any] = {}
    for task, recipes in RECIPES.items():
        trials = [LearningTrial(method, task, task, seed) for method in recipes for seed in SEEDS]
        found = learn_trials(trials, FOLDER, recipes.__getitem__, jobs)
        for method in recipes:
            mine = [outcome for trial, outcome in found.items() if trial.method == method]
            results.setdefault(task, {})[method] = {
                "accuracies": {str(each.seed): each.accuracy for each in mine},
                "seconds": {str(each.seed): each.seconds for each in mine},
                "machine": mine[0].machine,
            }
    return results


def ship(results: dict[str, Any]) -> None:
    """Puts the first seed's tasks into the shipped bundle, and measures them on the few images that tests read."""
    for task in RECIPES:
        learned = bundle_of(FOLDER, LearningTrial("ksm", task, task, SEEDS[0])) / "tasks" / f"{task}.safetensors"
        shutil.copy(learned, shipped_bundle() / "tasks")
        bundle = load_bundle(shipped_bundle())
        pack = bundle.packs[task]
        few = load_task_data(task).test
        results[task]["of the few"] = measure_accuracy(task_module(bundle, pack), few, pack.preprocessing)


def shown(accuracies: Sequence[float]) -> str:
    """Accuracies of seeds in percent."""
    return " / ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies) + " %"


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    bundle = load_bundle(shipped_bundle())
    machine = results["fashion-mnist"]["ksm"]["machine"]
    lines = [
        "# The learned tasks that ship",
        "",
        TEXT.format(backbone=EFFICIENTNET_LITE0, machine=machine),
        "| task | training / test images | classes | "
        + " | ".join(TITLES[method] for method in ("ksm", "head"))
        + " | on 600 test images | seconds, KSM / head | pack |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, by_method in results.items():
        pack, ksm, head = bundle.packs[task], by_method["ksm"], by_method["head"]
        size = (shipped_bundle() / "tasks" / f"{task}.safetensors").stat().st_size
        seconds = " / ".join(f"{each['seconds']['0']:.0f}" for each in (ksm, head))
        lines.append(
            f"| {task} | {pack.facts['training_images']} / {pack.facts['test_images']} | {len(pack.classes)} | "
            f"{shown(ksm['accuracies'].values())} | {shown(head['accuracies'].values())} | "
            f"{100 * by_method['of the few']:.1f} % | {seconds} | {size / 1e6:.2f} MB |"
        )
    commands = [bundle.packs[task].facts["command"] for task in results]
    return "\n".join([*lines, "", "Each task again:", "", "```sh", *commands, "```", ""])


def main() -> None:
    """Learns what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="tasks beside each other")
    parser.add_argument("--ship", action="store_true", help="put the first seed's tasks into the shipped bundle")
    parser.add_argument("--page", action="store_true", help="write the page of the JSON that is there, learn nothing")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    if not arguments.page:
        results = {task: {**results.get(task, {}), **found} for task, found in learn_all(arguments.jobs).items()}
        if arguments.ship:
            ship(results)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
