"""How a task is learned, as a user says it."""

from dataclasses import dataclass
from typing import Literal

from ksm_hw.learning.mask_equations import PAPER, MaskConstants
from ksm_hw.masks.mask_format import Granularity


@dataclass(frozen=True)
class LearningOptions:
    """How a task is learned; the rates are KSM's paper's.

    Attributes:
        method: its name in the table of `METHODS`.
        granularity: what shares a mask value; None is what the method's paper has.
        epochs: passes over the training images.
        batch_size: images a step.
        mask_rate: Adam's rate for masks and weights at the start of the cosine schedule.
        head_rate: Adam's rate for the head, likewise.
        norm_rate: Adam's rate for BatchNorms and LayerNorms, likewise; None is `mask_rate`.
        layer_norms: whether a task has LayerNorms of its own beside the BatchNorms.
        head_start: whether the head is fitted before the first epoch (`head_start`). BatchNorms then keep the
            statistics of the backbone, which the head was fitted to, and learn the rest.
        seed: of the head's first values, the order of the images, augmentation and dropout.
        constants: of the mask equations.
        prune: share in 0…1 of a task's weights that PackNet frees again, and the most that CPG does.
        accuracy_goal: accuracy in 0…1 on the validation part that CPG grows for and prunes down to; None is a
            point less than the task reached before it was pruned, for which nothing grows.
        max_width: how wide CPG may make the network, in its published widths.
        validation: share in 0…1 of the training images that are not learned but looked at; None is the method's.
        precision: what the learned network is to compute in; with int8 the last epochs learn in its arithmetic.
        int8_epochs: how many these are; None is a third of all, and at least one.
    """

    method: str = "ksm"
    granularity: Granularity | None = None
    epochs: int = 30
    batch_size: int = 32
    mask_rate: float = 2e-4
    head_rate: float = 2e-4
    norm_rate: float | None = None
    layer_norms: bool = True
    head_start: bool = False
    seed: int = 0
    constants: MaskConstants = PAPER
    prune: float = 0.75
    accuracy_goal: float | None = None
    max_width: float = 2.0
    validation: float | None = None
    precision: Literal["float32", "int8"] = "float32"
    int8_epochs: int | None = None

    @property
    def epochs_in_float(self) -> int:
        """How many epochs learn in float32, before those that learn in int8."""
        if self.precision == "float32":
            return self.epochs
        return self.epochs - (max(1, self.epochs // 3) if self.int8_epochs is None else self.int8_epochs)
