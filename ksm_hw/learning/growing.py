"""Learning in a network that grows until the task reaches its goal, as CPG has it.

Every layer grows alike, by half of its published width at a time. Older tasks keep the first channels of each layer;
the new weights are random, belong to nobody, and are learned with what else is free.
"""

import dataclasses
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
from ksm_hw.masks.bundle import sha256_of_tensors
from ksm_hw.masks.growth import Tensors, carried_over
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    build_backbone,
    bundled_backbone,
    check_can_grow,
    head_path,
    widen,
)

STEP = 0.5  # Of the published width.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grown:
    """What learning gave.

    Attributes:
        network: result of `learn`.
        before: the backbone's tensors that it was learned from, in its width.
        history: of the width that it was learned in.
    """

    network: nn.Module
    before: Tensors
    history: list[Epoch]


def _checkpoint_in(checkpoint: Path, width: float) -> Path:
    """The file with the state of a network in a width; in its published one the task's own."""
    return checkpoint if width == 1 else checkpoint.with_name(f"{checkpoint.stem}.width-{width:g}{checkpoint.suffix}")


def checkpoints_of(checkpoint: Path) -> list[Path]:
    """The files with the state of a task in every width."""
    return [checkpoint, *checkpoint.parent.glob(f"{checkpoint.stem}.width-*{checkpoint.suffix}")]


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
        data, preprocessing, options, checkpoint, on_batch, on_epoch: see `learn`; a width has a checkpoint of its own.

    Raises:
        UserError: as `learn`, or the network cannot grow.
    """
    while True:
        # A copy: the arrays share memory with a network that is about to change.
        before = {name: array.copy() for name, array in backbone_tensors(network).items()}
        width = _width(backbone, before)
        place = _checkpoint_in(checkpoint, width)
        network, history = learn(network, data, preprocessing, options, place, on_batch, on_epoch, older)
        if history[-1].verdict != "grow":
            return Grown(network, before, history)
        reached = f"The task reached {history[-1].validation or 0:.1%} of the images that were held out"
        if width + STEP > options.max_width:
            _log.warning("%s, in the widest network that --max-width allows: it is not pruned.", reached)
            return Grown(network, before, history)
        _log.warning("%s: the network grows to %g times its published width.", reached, width + STEP)
        network = wider(backbone, before, width + STEP, preprocessing.image_size, options.seed)
        wide = backbone_tensors(network)
        head = tuple(network.get_parameter(f"{head_path(network)}.weight").shape[1:])
        sha256 = sha256_of_tensors(wide)
        older = [carried_over(pack, before, wide, sha256, head) for pack in older]


def check_grows(backbone: str, width: float = 1 + STEP) -> None:
    """Checks that a network can grow to so many times its published width, by growing one without numbers.

    Raises:
        UserError: it cannot.
    """
    with torch.device("meta"):
        network = build_backbone(backbone)
        check_can_grow(network)
        widen(network, _shapes(network, width))


def _width(backbone: str, tensors: Tensors) -> float:
    """How wide a network is, in its published widths: the fewest steps in which no layer is wider."""
    with torch.device("meta"):
        published = build_backbone(backbone)
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
