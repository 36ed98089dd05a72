"""Learning in a network that grows until the task reaches its goal, as CPG has it.

Every layer grows alike, by half of its published width at a time. Older tasks keep the first channels of each layer;
the new weights are random, belong to nobody, and are learned with what else is free.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ksm_hw.learning.datasets import TaskData
from ksm_hw.learning.learn import Epoch, learn
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.growth import Tensors, carried_over
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    build_backbone,
    build_shapes,
    bundled_backbone,
    check_can_grow,
    head_path,
    widen,
)
from ksm_hw.quantising.network import operators_of

STEP = 0.5  # Of the published width.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grown:
    """What learning gave.

    Attributes:
        network: result of `learn`.
        before: the backbone's tensors that it was learned from, in its width.
        history: of all widths, one after another: the last epoch's seconds are those of all.
    """

    network: nn.Module
    before: Tensors
    history: list[Epoch]


def _checkpoint_in(checkpoint: Path, width: str) -> Path:
    """The file with the state of a network in a width; in its published one the task's own."""
    return checkpoint if width == "1" else checkpoint.with_name(f"{checkpoint.stem}.width-{width}{checkpoint.suffix}")


def checkpoints_of(checkpoint: Path) -> list[Path]:
    """The files with the state of a task, in every width in which there is one."""
    return [*checkpoint.parent.glob(checkpoint.name), *checkpoint.parent.glob(_checkpoint_in(checkpoint, "*").name)]


def unfinished_checkpoints_of(checkpoint: Path) -> list[Path]:
    """The files of processes that were killed while they wrote the state of a task, in any width."""
    names = (checkpoint.name, _checkpoint_in(checkpoint, "*").name)
    return [path for name in names for path in checkpoint.parent.glob(f".{name}.*")]


def learn_growing(
    network: nn.Module,
    backbone: str,
    data: TaskData,
    preprocessing: Preprocessing,
    options: LearningOptions,
    checkpoint: Path,
    older: Sequence[TaskPack],
    on_batch: Callable[[int, int], None],
    on_epoch: Callable[[Epoch], None],
) -> Grown:
    """Learns a task as `learn` does; where the method finds the network too small, again in a wider one.

    Args:
        network: the pretrained network.
        backbone: its name.
        older: the other tasks over it.
        on_epoch: as `learn` has it; epochs and seconds go on in a wider network.
        data, preprocessing, options, checkpoint, on_batch: see `learn`; a width has a checkpoint of its own.

    Raises:
        UserError: as `learn`, or the network cannot grow.
    """
    past: list[Epoch] = []
    while True:
        # A copy: the arrays share memory with a network that is about to change.
        before = {name: array.copy() for name, array in backbone_tensors(network).items()}
        width = _width(backbone, before)
        place = _checkpoint_in(checkpoint, f"{width:g}")
        counted = functools.partial(_counted, past, width)
        told = functools.partial(_tell, on_epoch, counted)
        size = preprocessing.image_size
        operators = None if options.precision == "float32" else operators_of(network, backbone, size)
        network, history = learn(network, data, preprocessing, options, place, on_batch, told, older, operators)
        history = [counted(epoch) for epoch in history]
        if history[-1].verdict != "grow":
            return Grown(network, before, [*past, *history])
        reached = f"The task reached {history[-1].validation:.1%} of the images that were held out"
        if width + STEP > options.max_width:
            _log.warning("%s, in the widest network that --max-width allows: it is not pruned.", reached)
            return Grown(network, before, [*past, *history])
        past = [*past, *history]
        _log.warning("%s: the network grows to %g times its published width.", reached, width + STEP)
        network = wider(backbone, before, width + STEP, preprocessing.image_size, options.seed)
        wide = backbone_tensors(network)
        head = tuple(network.get_parameter(f"{head_path(network)}.weight").shape[1:])
        sha256 = sha256_of_tensors(wide)
        older = [carried_over(pack, before, wide, sha256, head) for pack in older]


def _tell(on_epoch: Callable[[Epoch], None], counted: Callable[[Epoch], Epoch], epoch: Epoch) -> None:
    on_epoch(counted(epoch))


def _counted(past: Sequence[Epoch], width: float, epoch: Epoch) -> Epoch:
    """An epoch in a wider network, counted from the start in the published one."""
    seconds = past[-1].seconds if past else 0.0
    return dataclasses.replace(epoch, number=len(past) + epoch.number, seconds=seconds + epoch.seconds, width=width)


def check_grows(backbone: str, width: float = 1 + STEP) -> None:
    """Checks that a network can grow to so many times its published width, by growing one without numbers.

    Raises:
        UserError: it cannot.
    """
    network = build_shapes(backbone)
    check_can_grow(network)
    widen(network, _shapes(network, width))


def _width(backbone: str, tensors: Tensors) -> float:
    """How wide a network is, in its published widths: the fewest steps in which no layer is wider."""
    published = build_shapes(backbone)
    for width in itertools.count(1, STEP):
        shapes = _shapes(published, width)
        if all(_fits(array.shape, shapes.get(name, array.shape)) for name, array in tensors.items()):
            break
    return width


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    return all(map(int.__le__, shape, into))


def wider(backbone: str, tensors: Tensors, width: float, image_size: int, seed: int) -> nn.Module:
    """A network whose layers have so many times their published widths, the first channels with the tensors given."""
    check_grows(backbone, width)
    torch.manual_seed(seed)
    network = build_backbone(backbone)
    network = widen(network, _shapes(network, width))
    wide = {name: array.copy() for name, array in backbone_tensors(network).items()}
    for name, array in tensors.items():
        wide[name][tuple(map(slice, array.shape))] = array
    return bundled_backbone(backbone, wide, image_size)


def _shapes(network: nn.Module, width: float) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights in another width; its input keeps its three colours."""
    shapes = {}
    reads_image = True
    for path, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            outputs, inputs, *window = module.weight.shape
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            kept = reads_image or depthwise
            wide = inputs if kept else math.ceil(inputs * width)
            shapes[f"{path}.weight"] = (math.ceil(outputs * width), wide, *window)
            reads_image = False
        elif isinstance(module, nn.BatchNorm2d):
            shapes[f"{path}.weight"] = (math.ceil(module.num_features * width),)
    return shapes
