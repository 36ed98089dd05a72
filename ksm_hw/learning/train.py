"""Training as a user asks for it: images and a backbone in, a task in a bundle out."""

import dataclasses
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ksm_hw.learning.datasets import ImageSplit, TaskData
from ksm_hw.learning.learn import Epoch, LearningOptions, learn, measure_accuracy, task_pack_of
from ksm_hw.masks.bundle import Bundle, add_task, check_bundle_folder, check_task_name, sha256_of_tensors
from ksm_hw.masks.mask_format import ScaleBits
from ksm_hw.masks.soft_mask import soft_values, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    build_backbone,
    check_image_size,
    default_preprocessing,
    pretrained_backbone,
)
from ksm_hw.models.task_module import task_module

SAMPLES = 10  # Test images of a task that a bundle carries, so that `verify` and `make demo` have real input.
_SAMPLE_SIDE = 256  # Samples are shrunk to this longer side, in pixels, for they travel with every artifact.


@dataclass(frozen=True)
class Trained:
    """What training gave: the pack, and the largest error of a soft value that storing it with fewer bits caused."""

    pack: TaskPack
    scale_error: float


def check_request(task: str, backbone: str, image_size: int) -> None:
    """Checks what needs neither images nor weights, so that it is told before minutes of reading those.

    Raises:
        UserError: a name that no task can have, no such network, or one that does not take images of this size.
    """
    check_task_name(task)
    check_image_size(build_backbone(backbone), backbone, image_size)


def train_task(
    data: TaskData,
    task: str,
    bundle: Path,
    backbone: str,
    options: LearningOptions,
    *,
    weights: Path | None = None,
    image_size: int = 224,
    scale_bits: ScaleBits = 32,
    restart: bool = False,
    command: str = "",
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Learns a task and adds it to a bundle, which is made when it is not there.

    The state after each epoch is kept in `BUNDLE/.learning/`, so that the same call goes on where another was stopped.

    Args:
        data: the images.
        task: name of the task.
        bundle: folder of the bundle.
        backbone, weights: see `pretrained_backbone`.
        options: how to learn.
        image_size: height and width of the input in pixels.
        scale_bits: bits of a stored soft value.
        restart: learn from the start whatever an earlier run left.
        command: the command line, kept in the pack.
        on_batch, on_epoch: see `learn`.

    Raises:
        UserError: bad names, weights that do not fit, a bundle over another backbone, a disk that cannot be written.
    """
    check_task_name(task)
    checkpoint = bundle / ".learning" / f"{task}.pt"
    network = pretrained_backbone(backbone, weights)
    check_image_size(network, backbone, image_size)
    tensors = backbone_tensors(network)
    # A copy: the arrays share memory with a network that is about to change its BatchNorms.
    tensors = {name: array.copy() for name, array in tensors.items()}
    identity = (backbone, sha256_of_tensors(tensors))
    check_bundle_folder(bundle, *identity)
    if restart:
        checkpoint.unlink(missing_ok=True)
    preprocessing = default_preprocessing(backbone, image_size)
    network, history = learn(network, data, preprocessing, options, checkpoint, on_batch, on_epoch)
    exact = task_pack_of(network, data, task, options, identity, preprocessing)
    pack = task_pack_of(network, data, task, options, identity, preprocessing, scale_bits)
    reference = task_module(Bundle(*identity, tensors, {task: pack}), pack)
    # Of the pack as it is stored, which with 8 or 4 bits is not quite the network that was learned.
    accuracy = measure_accuracy(reference, data.test, preprocessing)
    pack = dataclasses.replace(pack, facts={**_facts(data, history), "command": command, "accuracy": accuracy})
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        write_samples(data.test, data.classes, samples)
        add_task(bundle, pack, tensors, samples)
    checkpoint.unlink(missing_ok=True)
    return Trained(pack, _scale_error(exact, pack))


def _facts(data: TaskData, history: list[Epoch]) -> dict[str, Any]:
    """What a pack keeps of how it was learned; the accuracy is the network's, whose soft values are not rounded."""
    return {
        "learned_accuracy": history[-1].accuracy,
        "seconds": round(history[-1].seconds, 1),
        "epochs": len(history),
        "training_images": len(data.train),
        "test_images": len(data.test),
        "source": data.source,
        "licence": data.licence,
    }


def _scale_error(exact: TaskPack, pack: TaskPack) -> float:
    """Largest difference between a soft mask as learned and as stored."""
    return max(
        (
            float(abs(unpack_mask(pack.masks[layer]) - unpack_mask(mask)).max())
            for layer, mask in exact.masks.items()
            if len(soft_values(mask))
        ),
        default=0.0,
    )


def write_samples(split: ImageSplit, classes: tuple[str, ...], folder: Path) -> None:
    """Writes a few images, spread evenly over the classes, as PNG files `<number>-<class>.png`."""
    labels = list(split.labels)
    chosen: list[int] = []
    for number in range(SAMPLES):
        wanted = number * len(classes) // SAMPLES % len(classes) if len(classes) > SAMPLES else number % len(classes)
        candidates = [index for index, label in enumerate(labels) if label == wanted and index not in chosen]
        chosen += candidates[:1]
    folder.mkdir()
    for number, index in enumerate(chosen):
        image, label = split[index]
        image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.LANCZOS)
        name = re.sub(r"[^A-Za-z0-9]+", "_", classes[label])
        image.save(folder / f"{number:02d}-{name}.png")
