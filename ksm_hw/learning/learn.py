"""Learning one task: the loop, its checkpoints, and the task pack that comes out of it."""

import dataclasses
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.files.written import written_file
from ksm_hw.learning.datasets import ImageSplit, TaskData
from ksm_hw.learning.images import test_batches, training_batches
from ksm_hw.learning.mask_equations import PAPER, MaskConstants
from ksm_hw.learning.masked_network import body_parameters, head_parameters, mask_network, pack_masks
from ksm_hw.learning.methods import method_named
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import batch_norm_names, head_path


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

    Args:
        backbone: the pretrained network; it becomes the result, its weights unchanged if the method learns none.
        data: the task's images.
        preprocessing: from an image to the input.
        options: how to learn.
        checkpoint: file that holds the state after the last whole epoch; when it is there, learning goes on from it.
        on_batch: called after each step with (steps done, steps of the epoch).
        on_epoch: called after each epoch.

    Raises:
        UserError: there is no such method; the checkpoint belongs to other options or cannot be read or written.
    """
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
    state = {"network": network, "optimizer": optimizer, "schedule": schedule}
    fingerprint = json.dumps(
        [data.name, data.classes, len(data.train), dataclasses.asdict(preprocessing), vars(options)], default=vars
    )
    history = _resume(checkpoint, state, fingerprint)
    for number in range(len(history) + 1, options.epochs + 1):
        start = time.perf_counter()
        loss = _learn_epoch(network, data, preprocessing, options, number, optimizer, schedule, on_batch)
        accuracy = measure_accuracy(network, data.test, preprocessing)
        earlier = history[-1].seconds if history else 0.0
        history.append(Epoch(number, loss, accuracy, earlier + time.perf_counter() - start))
        _save_checkpoint(checkpoint, state, fingerprint, history)
        on_epoch(history[-1])
    return network.cpu().eval(), history


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
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(labels)
        count += len(labels)
        on_batch(step, steps)
    return total / count


@torch.inference_mode()
def measure_accuracy(network: nn.Module, split: ImageSplit, preprocessing: Preprocessing) -> float:
    """Share in 0…1 of the images whose highest logit is their class, in evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    right = 0
    for images, labels in test_batches(split, preprocessing, batch_size=100):
        logits = network(images.to(device, memory_format=torch.channels_last))
        right += int((logits.argmax(1).cpu() == labels).sum())
    return right / len(split)


def _save_checkpoint(path: Path | None, state: dict[str, Any], fingerprint: str, history: list[Epoch]) -> None:
    if path is None:
        return
    content = {name: part.state_dict() for name, part in state.items()}
    # Through memory, because torch hides the error of a full disk.
    buffer = io.BytesIO()
    torch.save(content | {"fingerprint": fingerprint, "history": [vars(epoch) for epoch in history]}, buffer)
    with written_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _resume(path: Path | None, state: dict[str, Any], fingerprint: str) -> list[Epoch]:
    if path is None or not path.exists():
        return []
    try:
        content = torch.load(path, map_location=_device(), weights_only=True)
        found = content["fingerprint"]
    except Exception as error:  # torch raises many types for damaged files; each means the same here.
        raise UserError(f"Cannot read the checkpoint {path}. Learn from the start with --restart.") from error
    if found != fingerprint:
        raise UserError(
            f"The checkpoint {path} was begun with other options or other images. "
            "Give the same to go on, or --restart to learn from the start."
        )
    for name, part in state.items():
        part.load_state_dict(content[name])
    return [Epoch(**epoch) for epoch in content["history"]]


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
