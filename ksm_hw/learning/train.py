"""Training as a user asks for it: images and a backbone in, a task in a bundle out."""

import contextlib
import dataclasses
import logging
import platform
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ksm_hw.errors import UserError
from ksm_hw.files.locks import locked, made_folder
from ksm_hw.files.written import explained
from ksm_hw.learning.calibration_images import split_batches
from ksm_hw.learning.datasets import ImageSplit, TaskData
from ksm_hw.learning.growing import STEP, check_grows, checkpoints_of, learn_growing, unfinished_checkpoints_of
from ksm_hw.learning.learn import Epoch, learned_and_held_out, learning_device, measure_accuracy
from ksm_hw.learning.learned_task import backbone_after, task_pack_of
from ksm_hw.learning.methods.free_weights import free_share
from ksm_hw.learning.methods.table import check_older, check_options, check_read, method_named
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.starting_weights import PRETRAINED, Start, starting_weights
from ksm_hw.masks.bundle import (
    LEARNING,
    Bundle,
    add_calibration,
    add_tasks_over,
    check_bundle_folder,
    check_task_name,
    load_bundle,
    pack_in,
)
from ksm_hw.masks.growth import Tensors
from ksm_hw.masks.mask_format import ScaleBits
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import soft_values, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import default_preprocessing, maskable_layers
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.network import NotQuantisable, operators_of
from ksm_hw.quantising.observers import DEFAULT_CORRECTION, DEFAULT_OBSERVER, BiasCorrection

SAMPLES = 10  # Test images of a task that a bundle carries, so that `verify` and `make demo` have real input.
_SAMPLE_SIDE = 256  # Samples are shrunk to this longer side, in pixels, for they travel with every artifact.
_SAMPLE_NAME = 100  # Letters of the class that are in a sample's name; a folder's may be as long as any file's.

_WEIGHTS_LOCK = "weights-lock"  # No task's, for these end in another way.

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        pack: the task.
        scale_error: the largest error of a soft value that storing it with fewer bits caused.
        replaced_accuracy: of the task of that name which the bundle had before, in 0…1; None where it had none, or
            nobody measured it.
        carried_over: older tasks that are now over another backbone, where they compute what they did.
        free_share: share in 0…1 of the backbone's weights that no task of the bundle uses.
        gpu_bytes: the most memory that PyTorch held on the GPU; 0 where it was learned without one.
    """

    pack: TaskPack
    scale_error: float
    replaced_accuracy: float | None
    carried_over: list[str]
    free_share: float
    gpu_bytes: int


def checkpoint_of(bundle: Path, task: str) -> Path:
    """The file with the state after the last whole epoch of a task that is being learned."""
    return bundle / LEARNING / f"{task}.pt"


def _forget(checkpoint: Path) -> None:
    """Removes the state of a task, in all widths of the network."""
    with explained(checkpoint):
        for kept in checkpoints_of(checkpoint):
            kept.unlink()


@contextlib.contextmanager
def _learning(bundle: Path, task: str, changes_weights: bool) -> Iterator[Path]:
    """The checkpoint of a task, while no other process learns the task of that name into the bundle.

    A task that changes the weights is learned while no other is: what is learned over weights that are about to change
    is lost. Others only wait for such a one to end, and are learned beside each other.
    """
    checkpoint = checkpoint_of(bundle, task)
    folder = checkpoint.parent
    with made_folder(folder), contextlib.ExitStack() as held:
        weights = held.enter_context(contextlib.ExitStack())
        weights.enter_context(locked(folder / _WEIGHTS_LOCK))
        held.enter_context(locked(folder / f"{task}.lock"))
        if changes_weights:
            for other in sorted(set(folder.glob("*.lock")) - {folder / f"{task}.lock"}):
                with locked(other):
                    pass
        else:
            weights.close()
        with explained(checkpoint):
            for left in unfinished_checkpoints_of(checkpoint):
                left.unlink()  # Half a checkpoint: its process was killed.
        yield checkpoint


def checked_start(
    task: str,
    bundle: Path,
    backbone: str,
    weights: Path | None,
    image_size: int,
    options: LearningOptions,
    scale_bits: ScaleBits = 32,
) -> Start:
    """What a task would be learned from; all is checked that needs no images, for these may take minutes.

    Raises:
        UserError: a name that no task can have, a folder that no task can be written into or whose bundle is over
            other weights, masks that begin at 0, options that the method does not read, too few epochs or another
            granularity than the method has, too few free weights, weights that do not fit, no such network, or one
            that does not take images of this size, or that int8 does not know where it is to learn in it.
    """
    check_task_name(task)
    check_bundle_folder(bundle, task)
    check_options(options)
    check_read(options, scale_bits)
    method, constants = method_named(options.method), options.constants
    if method.binarise is not None and not method.binarise(torch.tensor(constants.initial), constants):
        raise UserError(
            f"With --mask-initial {constants.initial:g} and --mask-threshold {constants.threshold:g} "
            "every weight begins at 0. Give a first value above the threshold."
        )
    if options.accuracy_goal is not None:
        _check_goal(options, backbone)
    start = starting_weights(task, bundle, backbone, weights, image_size)
    check_older(options, start.free_share, start.older)
    if options.precision == "int8":
        operators_of(start.network, backbone, image_size)
    return start


def _check_goal(options: LearningOptions, backbone: str) -> None:
    """Checks before anything is learned that the network can grow for a goal of accuracy."""
    if options.max_width < 1 + STEP:
        return
    try:
        check_grows(backbone)
    except UserError as error:
        raise UserError(f"{error} Give --max-width 1 to learn without growing, or another --backbone.") from error


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
    on_added: Callable[[Trained], None] = lambda trained: None,
) -> Trained:
    """Learns a task and adds it to a bundle, which is made when it is not there.

    The state after each epoch is kept in `BUNDLE/.learning/`, so that the same call goes on where another was stopped.
    Calibration comes last: where it fails or is stopped the task stays without ranges, and a warning says so. Where
    another process changes the weights of the bundle this waits for it.

    Args:
        data: the images.
        task: name of the task.
        bundle: folder of the bundle.
        backbone, weights: see `starting_weights`.
        options: how to learn.
        image_size: height and width of the input in pixels.
        scale_bits: bits of a stored soft value.
        restart: learn from the start whatever an earlier run left.
        command: the command line, kept in the pack.
        on_batch, on_epoch: see `learn`.
        on_added: called when the task is in the bundle, before it is calibrated.

    Raises:
        UserError: bad names, weights that do not fit, a bundle over another backbone, a disk that cannot be written.
    """
    checked = (task, bundle, backbone, weights, image_size, options, scale_bits)
    checked_start(*checked)  # Before a lock is written, and waited for.
    with _learning(bundle, task, method_named(options.method).changes_weights) as checkpoint:
        start = checked_start(*checked)
        replaced = _replaced_accuracy(bundle, task)
        if restart:
            _forget(checkpoint)
        preprocessing = default_preprocessing(backbone, image_size)
        if on_gpu := learning_device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        grown = learn_growing(
            start.network, backbone, data, preprocessing, options, checkpoint, start.older, on_batch, on_epoch
        )
        network = grown.network
        tensors = backbone_after(network, grown.before, options)
        identity = (backbone, sha256_of_tensors(tensors))
        exact = task_pack_of(network, data, task, options, identity, preprocessing)
        pack = task_pack_of(network, data, task, options, identity, preprocessing, scale_bits)
        whole = Bundle(*identity, tensors, {task: pack})
        reference = task_module(whole, pack)
        # Of the pack as it is stored, which with 8 or 4 bits is not quite the network that was learned.
        accuracy = measure_accuracy(reference, data.test, preprocessing)
        facts = {"command": command, "accuracy": accuracy, PRETRAINED: start.pretrained_sha256}
        pack = dataclasses.replace(pack, facts={**_facts(data, options, grown.history), **facts})
        carried_over = _add(bundle, pack, tensors, data, checkpoint)
        free = free_share(maskable_layers(reference), list(load_bundle(bundle).packs.values()))
        gpu_bytes = torch.cuda.max_memory_allocated() if on_gpu else 0
        trained = Trained(pack, _scale_error(exact, pack), replaced, carried_over, free, gpu_bytes)
        on_added(trained)
        return dataclasses.replace(trained, pack=_calibrated(bundle, whole, pack, data, options))


def _calibrated(folder: Path, bundle: Bundle, pack: TaskPack, data: TaskData, options: LearningOptions) -> TaskPack:
    """The task with ranges of its tensors, where int8 knows its network; it is in the folder, and stays in any case.

    What learned in int8 learned with the biases that it has.
    """
    correction: BiasCorrection = DEFAULT_CORRECTION if options.precision == "float32" else "none"
    try:
        images = learned_and_held_out(data, options)[0].train
        batches = split_batches(images, pack.preprocessing, data.name)
        found = calibrate(bundle, pack, batches, DEFAULT_OBSERVER, correction=correction)
        return add_calibration(folder, pack, found)
    except NotQuantisable as error:
        _log.info("task %s is not calibrated: %s", pack.task, error)
    except (Exception, KeyboardInterrupt) as error:  # Whatever it is, the task is learned.
        # A user who stops the command stops it here too, and what would come next.
        _log.warning(
            "Task '%s' is learned and in %s, but not calibrated, which int8 needs (%s). Calibrate it: %s",
            pack.task,
            folder,
            str(error) or type(error).__name__,
            shlex.join(
                ["ksm-hw", "calibrate", "--task", pack.task, "--bundle", str(folder), "--data", "IMAGES"]
                + ([] if correction == DEFAULT_CORRECTION else ["--bias-correction", correction])
            ),
        )
        if isinstance(error, KeyboardInterrupt):
            raise
    return pack


def _replaced_accuracy(bundle: Path, task: str) -> float | None:
    """Says at the start that a task of this name will be replaced, while that can still be stopped."""
    older = pack_in(bundle, task)
    if older is None:
        return None
    accuracy = older.facts.get("accuracy")
    known = isinstance(accuracy, float)
    words = f"its accuracy of {accuracy:.1%}" if known else "an accuracy that nobody measured"
    _log.warning("Task '%s' is in %s already, with %s: it is replaced at the end.", task, bundle, words)
    return accuracy if known else None


def _add(bundle: Path, pack: TaskPack, tensors: Tensors, data: TaskData, checkpoint: Path) -> list[str]:
    """Adds the task to the bundle, with samples of its images, and returns the older ones that got another backbone.

    Its checkpoints go with the same step: a process that is killed leaves one of both.
    """
    finished = [str(path.relative_to(bundle)) for path in checkpoints_of(checkpoint)]
    with explained(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        samples = Path(folder)
        write_samples(data.test, data.classes, samples / pack.task)
        return add_tasks_over(bundle, [pack], tensors, lambda: check_grows(pack.backbone), samples, finished)


def _facts(data: TaskData, options: LearningOptions, history: list[Epoch]) -> dict[str, Any]:
    """What a pack keeps of how it was learned; the accuracy is the network's, whose soft values are not rounded.

    Where it learned in int8 it is that of int8.
    """
    return {
        "learned_accuracy": history[-1].accuracy,
        "learned_precision": options.precision,
        **({} if history[-1].validation is None else {"validation_accuracy": history[-1].validation}),
        "seconds": round(history[-1].seconds, 1),
        "epochs": len(history),
        "training_images": len(learned_and_held_out(data, options)[0].train),
        "test_images": len(data.test),
        "machine": torch.cuda.get_device_name() if learning_device().type == "cuda" else platform.machine(),
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
        name = re.sub(r"[^A-Za-z0-9]+", "_", classes[label])[:_SAMPLE_NAME]
        image.save(folder / f"{number:02d}-{name}.png")
