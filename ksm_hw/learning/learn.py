"""Learning one task: the one loop of all methods."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.calibration_images import split_batches
from ksm_hw.learning.checkpoint import Checkpoint, mark_diverged, resume, save_checkpoint
from ksm_hw.learning.datasets import ImageSplit, TaskData, held_out
from ksm_hw.learning.head_start import keep_statistics, start_head
from ksm_hw.learning.images import kept_for_testing, kept_for_training, test_batches, training_batches
from ksm_hw.learning.methods.free_weights import used_weights
from ksm_hw.learning.methods.masked_weights import body_parameters, head_parameters, norm_parameters
from ksm_hw.learning.methods.method import Verdict
from ksm_hw.learning.methods.table import check_options, method_named, prepared_network
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import backbone_tensors, maskable_layers
from ksm_hw.quantising.calibrate import NoRange, observed_ranges
from ksm_hw.quantising.network import Network
from ksm_hw.quantising.observers import DEFAULT_OBSERVER
from ksm_hw.quantising.rounded_network import RoundedNetwork, learned_weights


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        number: from 1.
        loss: the mean of training.
        accuracy: on the test images, in 0…1.
        seconds: since the start.
        validation: accuracy on the validation part in 0…1; None where there is none.
        verdict: of the method; learning ends where there is one.
        width: of the network, in its published widths.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    validation: float | None = None
    verdict: Verdict = ""
    width: float = 1.0


class NotFinite(UserError):
    """A network whose weights or logits are infinite or no numbers."""


def learn(
    backbone: nn.Module,
    data: TaskData,
    preprocessing: Preprocessing,
    options: LearningOptions,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    older: Sequence[TaskPack] = (),
    operators: Network | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """Learns a task over a pretrained backbone and returns the network and the history of its epochs.

    A run that goes on from where another diverged may have other rates: they hold from there on.

    Args:
        backbone: the pretrained network; it becomes the result, its weights unchanged if the method learns none.
        data: the task's images.
        preprocessing: from an image to the input.
        options: how to learn.
        checkpoint: file that holds the state after the last whole epoch; when it is there, learning goes on from it.
        on_batch: called after each step with (steps done, steps of the epoch).
        on_epoch: called after each epoch.
        older: the other tasks over the backbone.
        operators: of the backbone; needed where the last epochs learn in int8.

    Raises:
        UserError: there is no such method, or it cannot learn over the older tasks; there are too few classes or
            images, or epochs for the method; the checkpoint belongs to other options or cannot be read or written; the
            loss or what is learned is not finite (the checkpoint of the last epoch in which they were is kept).
    """
    method = method_named(options.method)
    check_options(options)
    data, validation = learned_and_held_out(data, options)
    seen = data.train
    data, validation = _kept(data, validation, preprocessing)
    fingerprint = _fingerprint(backbone, data, preprocessing, options, older)
    torch.manual_seed(options.seed)
    network = prepared_network(backbone, len(data.classes), options, older)
    network = network.to(learning_device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rates = (options.mask_rate, options.head_rate, options.norm_rate or options.mask_rate)
    optimizer, schedule = _optimiser(network, rates, options.epochs * -(-len(data.train) // options.batch_size))
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    kept = Checkpoint(checkpoint, parts, fingerprint, rates)
    history = [Epoch(**epoch) for epoch in resume(kept)]
    _set_rates(optimizer, schedule, rates)
    while len(history) < options.epochs and not (history and history[-1].verdict):
        number, start = len(history) + 1, time.perf_counter()
        # Only a method that looks at a validation part may take an epoch back.
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()} if method.validation else {}
        _start_epoch(network, data, preprocessing, options, number)
        in_int8 = None if number <= options.epochs_in_float else operators
        try:
            computed = network if in_int8 is None else rounded_network(network, in_int8, seen, preprocessing, data.name)
            loss = _learn_epoch(computed, data, preprocessing, options, number, optimizer, schedule, on_batch)
            if in_int8 is not None and math.isfinite(loss):  # With ranges of what was learned.
                computed = rounded_network(network, in_int8, seen, preprocessing, data.name)
            epoch = _measured(computed, data, validation, preprocessing, Epoch(number, loss, 0.0, 0.0))
        except NotFinite as error:
            raise _diverged(number, mark_diverged(kept)) from error
        looked_at = [each.validation for each in (*history, epoch) if each.validation is not None]
        verdict = method.end_epoch(options, looked_at)
        if verdict == "undo":
            network.load_state_dict(before)
            epoch = dataclasses.replace(history[-1], number=number, loss=loss)
        seconds = (history[-1].seconds if history else 0.0) + time.perf_counter() - start
        history.append(dataclasses.replace(epoch, seconds=seconds, verdict=verdict))
        save_checkpoint(kept, [vars(each) for each in history])
        on_epoch(history[-1])
    return network.cpu().eval(), history


def rounded_network(
    network: nn.Module, operators: Network, images: ImageSplit, preprocessing: Preprocessing, task: str
) -> RoundedNetwork:
    """The network as int8 computes it, with the ranges that calibration would give it as it is now.

    Raises:
        UserError: an image cannot be read.
        NotFinite: it computes values that are too large or not finite.
    """
    batches = split_batches(images, preprocessing, task)
    try:
        ranges = observed_ranges(operators, learned_weights(operators, network), batches, DEFAULT_OBSERVER, task)
    except NoRange as error:
        raise NotFinite(str(error)) from error
    return RoundedNetwork(network, operators, ranges)


def learned_and_held_out(data: TaskData, options: LearningOptions) -> tuple[TaskData, ImageSplit | None]:
    """The task with the training images that are learned, and those that are only looked at, if there are any.

    Raises:
        UserError: there are too few classes or images.
    """
    default = method_named(options.method).validation
    data, validation = held_out(data, default if options.validation is None else options.validation)
    _check_data(data)
    return data, validation


def _optimiser(
    network: nn.Module, rates: tuple[float, float, float], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with a rate each for what is below the head, the head, and norms, on a cosine over all steps."""
    groups = (body_parameters(network), head_parameters(network), norm_parameters(network))
    optimizer = torch.optim.Adam(
        [{"params": parameters, "lr": rate} for parameters, rate in zip(groups, rates, strict=True)]
    )
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _kept(
    data: TaskData, validation: ImageSplit | None, preprocessing: Preprocessing
) -> tuple[TaskData, ImageSplit | None]:
    """The same images, which are decoded and scaled once."""
    train, test = kept_for_training(data.train, preprocessing), kept_for_testing(data.test, preprocessing)
    held = None if validation is None else kept_for_testing(validation, preprocessing)
    return dataclasses.replace(data, train=train, test=test), held


def _start_epoch(
    network: nn.Module, data: TaskData, preprocessing: Preprocessing, options: LearningOptions, number: int
) -> None:
    """Brings the network to where an epoch begins: its mode, what the method prunes, and a head to begin with."""
    if options.head_start and number == 1:
        batches = training_batches(
            data.train, preprocessing, options.batch_size, (options.seed, 0), data.flip, learning_device()
        )
        start_head(network, batches, options.seed)
    method_named(options.method).start_epoch(network, options, number)
    if options.head_start:
        keep_statistics(network)


def _measured(
    network: nn.Module, data: TaskData, validation: ImageSplit | None, preprocessing: Preprocessing, epoch: Epoch
) -> Epoch:
    """The epoch with its accuracies.

    Raises:
        NotFinite: what is learned is not finite, or gives logits that are not.
    """
    if not (math.isfinite(epoch.loss) and _is_finite(network)):
        raise NotFinite("The loss or what is learned is not finite.")
    return dataclasses.replace(
        epoch,
        accuracy=measure_accuracy(network, data.test, preprocessing),
        validation=None if validation is None else measure_accuracy(network, validation, preprocessing),
    )


def _check_data(data: TaskData) -> None:
    """Whether there is something to learn."""
    if len(data.classes) < 2:
        there_are = f"one, '{data.classes[0]}'" if data.classes else "none"
        raise UserError(f"A task tells at least 2 classes apart; {data.name} has {there_are}.")
    for split, fewest, name in ((data.train, 2, "training"), (data.test, 1, "test")):
        if len(split) < fewest:
            raise UserError(f"{data.name} has {len(split)} {name} images; a task needs at least {fewest}.")


def _fingerprint(
    backbone: nn.Module,
    data: TaskData,
    preprocessing: Preprocessing,
    options: LearningOptions,
    older: Sequence[TaskPack],
) -> str:
    """What must be the same where a run goes on: all but the rates, which are lowered where one diverged."""
    same = {name: value for name, value in vars(options).items() if not name.endswith("_rate")}
    weights = sha256_of_tensors(backbone_tensors(backbone))
    # Two sets of tasks that use the same weights leave the same ones free.
    used = used_weights(maskable_layers(backbone), older) if method_named(options.method).changes_weights else {}
    images = [data.name, data.classes, len(data.train)]
    tasks = [len(older) > 0, sha256_of_tensors(used)] if used else []
    return json.dumps([weights, *images, dataclasses.asdict(preprocessing), same, tasks], default=vars)


def _set_rates(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, rates: tuple[float, ...]
) -> None:
    """Makes the rates those of a run from its start: each step's is a share of them."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate != group["initial_lr"]:
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"] = rate
    schedule.base_lrs = list(rates)


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def _diverged(number: int, kept: bool) -> UserError:
    return UserError(
        f"Training diverged in epoch {number}: the loss or what is learned is not finite. Lower --mask-rate or "
        "--head-rate. "
        + (
            f"The state after epoch {number - 1} is kept: the same command with lower rates goes on from it; --restart "
            "learns from the start."
            if kept
            else "Nothing of it is kept."
        )
    )


def learning_device() -> torch.device:
    """Where tasks are learned: the GPU where PyTorch finds one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _learn_epoch(
    network: nn.Module,
    data: TaskData,
    preprocessing: Preprocessing,
    options: LearningOptions,
    number: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    on_batch: Callable[[int, int], None],
) -> float:
    """One pass over the training images. The mean loss, or the first that is not finite, before it changes anything."""
    seed = (options.seed, number)
    torch.manual_seed(hash(seed))
    total, count = 0.0, 0
    steps = -(-len(data.train) // options.batch_size)
    batches = training_batches(data.train, preprocessing, options.batch_size, seed, data.flip, learning_device())
    for step, (images, labels) in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(network(images), labels)
        if not math.isfinite(value := loss.item()):
            return value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += value * len(labels)
        count += len(labels)
        on_batch(step, steps)
    return total / count


@torch.inference_mode()
def measure_accuracy(network: nn.Module, split: ImageSplit, preprocessing: Preprocessing) -> float:
    """Share in 0…1 of the images whose highest logit is their class, in evaluation mode.

    Raises:
        NotFinite: some of an image are not.
    """
    network.eval()
    device = next(network.parameters()).device
    right = 0
    for images, labels in test_batches(split, preprocessing, 100, device):
        logits = network(images)
        if not torch.isfinite(logits).all():
            raise NotFinite(
                "The network gives logits that are not finite for test images: its finite weights overflow. Lower "
                "--mask-rate or --head-rate, or give other weights."
            )
        right += int((logits.argmax(1) == labels).sum())
    return right / len(split)
