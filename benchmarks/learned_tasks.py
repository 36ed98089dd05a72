"""Learns the shipped tasks and what they are compared with, and writes the table of docs/learned_tasks.md.

    python benchmarks/learned_tasks.py --bundle bundles/efficientnet-lite0

For each data set, with the same images, epochs and seed: KSM's soft masks (this becomes the shipped task), binary
kernel-wise masks, the head alone, and fine-tuning of the whole network. Results are kept in docs/learned_tasks.json
after each run, and a run that is there is not repeated, so the command can be stopped and given again.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
from pathlib import Path

import torch

from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.learn import Epoch, learn
from ksm_hw.learning.methods.masked_weights import pack_masks
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import train_task
from ksm_hw.masks.soft_mask import binary_mask
from ksm_hw.masks.task_pack import load_task_pack
from ksm_hw.models.backbones import EFFICIENTNET_LITE0, default_preprocessing, pretrained_backbone

COMPARED = ("ksm", "head", "binary", "fine-tuning")
IMAGE_SIZE = 96  # Pixels. 224 would take five times as long on two cores.
SCALE_BITS = 8
OPTIONS = LearningOptions(epochs=5, batch_size=32, mask_rate=1e-3, head_rate=2e-3)
FINE_TUNING_RATE = 2e-4  # Weights, unlike masks, need no large steps: 1e-3 would forget ImageNet.
REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "learned_tasks.json"
TABLE = REPOSITORY / "docs" / "learned_tasks.md"


def train_command(name: str, bundle: Path) -> str:
    """The command line that learns the shipped task again."""
    return shlex.join(
        f"ksm-hw train --backbone {EFFICIENTNET_LITE0} --task {name} --data {name} --bundle {bundle} "
        f"--image-size {IMAGE_SIZE} --epochs {OPTIONS.epochs} --batch-size {OPTIONS.batch_size} "
        f"--mask-rate {OPTIONS.mask_rate} --head-rate {OPTIONS.head_rate} --scale-bits {SCALE_BITS}".split()
    )


def run(name: str, method: str, bundle: Path) -> dict[str, float]:
    """Learns one data set with one method; accuracy in 0…1, time in seconds, share of zeros in the masks."""
    data = load_task_data(name)
    rate = FINE_TUNING_RATE if method == "fine-tuning" else OPTIONS.mask_rate
    options = dataclasses.replace(OPTIONS, method=method, mask_rate=rate)

    def show(epoch: Epoch) -> None:
        print(f"{name} {method} epoch {epoch.number}: loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.3f}", flush=True)

    if method == "ksm":
        trained = train_task(
            data, name, bundle, EFFICIENTNET_LITE0, options, image_size=IMAGE_SIZE, scale_bits=SCALE_BITS,
            command=train_command(name, bundle), on_epoch=show,
        )  # fmt: skip
        masks = trained.pack.masks
        accuracy, seconds = trained.pack.facts["accuracy"], trained.pack.facts["seconds"]
    else:
        preprocessing = default_preprocessing(EFFICIENTNET_LITE0, IMAGE_SIZE)
        network, history = learn(pretrained_backbone(EFFICIENTNET_LITE0), data, preprocessing, options, on_epoch=show)
        masks = pack_masks(network)
        accuracy, seconds = history[-1].accuracy, history[-1].seconds
    zeros = sum(int((~binary_mask(mask)).sum()) for mask in masks.values())
    values = sum(binary_mask(mask).size for mask in masks.values())
    return {"accuracy": accuracy, "seconds": seconds, "zeros": zeros / values if values else 0.0}


def table(results: dict[str, dict[str, dict[str, float]]], bundle: Path) -> str:
    """The Markdown page."""
    lines = [
        "# The learned tasks that ship",
        "",
        f"Backbone: {EFFICIENTNET_LITE0} with its ImageNet weights; {IMAGE_SIZE}×{IMAGE_SIZE} pixels; {OPTIONS.epochs} "
        f"epochs, batches of {OPTIONS.batch_size}, seed {OPTIONS.seed}; Adam at {OPTIONS.mask_rate} (masks and "
        f"BatchNorms; fine-tuning {FINE_TUNING_RATE}) and {OPTIONS.head_rate} (head), cosine schedule. The paper's "
        "rate is 2e-4 for tens of epochs; a few hundred steps need more. Accuracy is that of the stored task, its soft "
        f"values in {SCALE_BITS} bits, on the test images; one run. Written by `python benchmarks/learned_tasks.py "
        f"--bundle {bundle}` with torch {torch.__version__} on {platform.machine()}, one thread a run, on a machine "
        "that did other work at the time: the times are an upper bound.",
        "",
        "| task | training / test images | classes | " + " | ".join(TITLES[method] for method in COMPARED)
        + " | zeros in the masks, soft / binary | training time, soft | pack |",
        "|" + " --- |" * (6 + len(COMPARED)),
    ]  # fmt: skip
    commands = []
    for name, by_method in results.items():
        if "ksm" not in by_method:
            continue
        path = bundle / "tasks" / f"{name}.safetensors"
        pack = load_task_pack(path)
        accuracy = [f"{by_method[method]['accuracy']:.1%}" if method in by_method else "—" for method in COMPARED]
        binary_zeros = f"{by_method['binary']['zeros']:.1%}" if "binary" in by_method else "—"
        lines.append(
            f"| {name} | {pack.facts['training_images']} / {pack.facts['test_images']} | {len(pack.classes)} | "
            + " | ".join(accuracy)
            + f" | {by_method['ksm']['zeros']:.1%} / {binary_zeros} | {by_method['ksm']['seconds']:.0f} s | "
            f"{path.stat().st_size / 1e6:.2f} MB |"
        )
        commands.append(pack.facts["command"])
    return "\n".join([*lines, "", "Each task again:", "", "```sh", *commands, "```", ""])


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/efficientnet-lite0"))
    parser.add_argument("--tasks", nargs="+", default=["fashion-mnist", "clipart", "emoji", "glyphs", "mnist"])
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=COMPARED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for method in arguments.methods:
        for name in arguments.tasks:
            if method not in results.get(name, {}):
                results.setdefault(name, {})[method] = run(name, method, arguments.bundle)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n")
                TABLE.write_text(table(results, arguments.bundle))
    TABLE.write_text(table(results, arguments.bundle))


if __name__ == "__main__":
    main()
