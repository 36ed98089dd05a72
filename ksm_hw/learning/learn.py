"""Learning one task: the loop, its checkpoints, and the task pack that comes out of it."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.checkpoint import Checkpoint, mark_diverged, resume, save_checkpoint
from ksm_hw.learning.datasets import ImageSplit, TaskData
from ksm_hw.learning.images import test_batches, training_batches
from ksm_hw.learning.mask_equations import PAPER, MaskConstants
from ksm_hw.learning.masked_network import body_parameters, head_parameters, mask_network, pack_masks
from ksm_hw.learning.methods import method_named
from ksm_hw.masks.bundle import sha256_of_tensors
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import backbone_tensors, batch_norm_names, head_path


@dataclass(frozen=True)
class LearningOptions:
    """How a task is learned; the rates are the paper's.

    Attributes:
        method: its name in the table of `METHODS`.
        granularity: what shares a mask value.
        epochs: passes over the training images.
        batch_size: images a step.
        mask_rate: Adam's rate for masks and BatchNorms at the start of the cosine schedule.
        head_rate: Adam's rate for the head, likewise.
        seed: of the head's first values, the order of the images, augmentation and dropout.
        constants: of the mask equations.
    """

    method: str = "ksm"
    granularity: Granularity = "kernel"
    epochs: int = 30
    batch_size: int = 32
    mask_rate: float = 2e-4
    head_rate: float = 2e-4
    seed: int = 0
    constants: MaskConstants = PAPER


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: its number from 1, mean training loss, test accuracy in 0…1, seconds since the start."""

    number: int
    loss: float
    accuracy: float
    seconds: float


class LogitsNotFinite(UserError):
    """A network whose logits are infinite or no numbers."""


def learn(
    backbone: nn.Module,
    data: TaskData,
    preprocessing: Preprocessing,
    options: LearningOptions,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
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

    Raises:
        UserError: there is no such method; there are too few classes or images; the checkpoint belongs to other options
            or cannot be read or written; the loss or what is learned is not finite (the checkpoint of the last epoch
            in which they were is kept).
    """
    _check_data(data)
    fingerprint = _fingerprint(backbone, data, preprocessing, options)
    torch.manual_seed(options.seed)
    network = mask_network(backbone, len(data.classes), options.method, options.granularity, options.constants)
    network = network.to(_device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = -(-len(data.train) // options.batch_size)
    optimizer = torch.optim.Adam(
        [
            {"params": body_parameters(network), "lr": options.mask_rate},
            {"params": head_parameters(network), "lr": options.head_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    rates = (options.mask_rate, options.head_rate)
    kept = Checkpoint(
        checkpoint, {"network": network, "optimizer": optimizer, "schedule": schedule}, fingerprint, rates
    )
    history = [Epoch(**epoch) for epoch in resume(kept)]
    _set_rates(optimizer, schedule, rates)
    for number in range(len(history) + 1, options.epochs + 1):
        start = time.perf_counter()
        loss = _learn_epoch(network, data, preprocessing, options, number, optimizer, schedule, on_batch)
        if not (math.isfinite(loss) and _is_finite(network)):
            raise _diverged(number, mark_diverged(kept))
        try:
            accuracy = measure_accuracy(network, data.test, preprocessing)
        except LogitsNotFinite as error:
            raise _diverged(number, mark_diverged(kept)) from error
        earlier = history[-1].seconds if history else 0.0
        history.append(Epoch(number, loss, accuracy, earlier + time.perf_counter() - start))
        save_checkpoint(kept, [vars(epoch) for epoch in history])
        on_epoch(history[-1])
    return network.cpu().eval(), history


def _check_data(data: TaskData) -> None:
    """Whether there is something to learn."""
    if len(data.classes) < 2:
        raise UserError(f"A task tells at least 2 classes apart; {data.name} has {', '.join(data.classes) or 'none'}.")
    for split, fewest, name in ((data.train, 2, "training"), (data.test, 1, "test")):
        if len(split) < fewest:
            raise UserError(f"{data.name} has {len(split)} {name} images; a task needs at least {fewest}.")


def _fingerprint(backbone: nn.Module, data: TaskData, preprocessing: Preprocessing, options: LearningOptions) -> str:
    """What must be the same where a run goes on: all but the rates, which are lowered where one diverged."""
    same = {name: value for name, value in vars(options).items() if name not in ("mask_rate", "head_rate")}
    weights = sha256_of_tensors(backbone_tensors(backbone))
    return json.dumps(
        [weights, data.name, data.classes, len(data.train), dataclasses.asdict(preprocessing), same], default=vars
    )


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


def _device() -> torch.device:
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
    # Over frozen features the BatchNorms' statistics are the backbone's.
    network.train(method_named(options.method).batch_norms)
    total, count = 0.0, 0
    steps = -(-len(data.train) // options.batch_size)
    batches = training_batches(data.train, preprocessing, options.batch_size, seed, data.flip)
    for step, (images, labels) in enumerate(batches, start=1):
        logits = network(images.to(_device(), memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits, labels.to(_device()))
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
        LogitsNotFinite: some of an image are not.
    """
    network.eval()
    device = next(network.parameters()).device
    right = 0
    for images, labels in test_batches(split, preprocessing, batch_size=100):
        logits = network(images.to(device, memory_format=torch.channels_last))
        if not torch.isfinite(logits).all():
            raise LogitsNotFinite(
                "The network gives logits that are not finite for test images: its finite weights overflow. Lower "
                "--mask-rate or --head-rate, or give other weights."
            )
        right += int((logits.argmax(1).cpu() == labels).sum())
    return right / len(split)


def task_pack_of(
    network: nn.Module,
    data: TaskData,
    task: str,
    options: LearningOptions,
    backbone: tuple[str, str],
    preprocessing: Preprocessing,
    scale_bits: ScaleBits = 32,
) -> TaskPack:
    """What the network learned, as a task pack.

    Args:
        network: result of `learn`.
        data: the task's images.
        task: name of the task.
        options: how it was learned; by a method that leaves the weights as they are.
        backbone: (name, SHA-256 of its weights).
        preprocessing: of the task.
        scale_bits: bits of a stored soft value.
    """
    state = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    head = head_path(network)
    norms = batch_norm_names(network) if method_named(options.method).batch_norms else []
    return TaskPack(
        task=task,
        classes=data.classes,
        method=options.method,
        granularity=options.granularity,
        backbone=backbone[0],
        backbone_sha256=backbone[1],
        preprocessing=preprocessing,
        masks=pack_masks(network, scale_bits),
        batch_norms={name: state[name] for name in norms},
        head_weight=state[f"{head}.weight"],
        head_bias=state[f"{head}.bias"],
    )
