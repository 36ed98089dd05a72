"""Piggyback (Mallya, Davis, Lazebnik, ECCV 2018, arXiv 1801.06519): binary masks over frozen weights and BatchNorms."""

import functools
from collections.abc import Sequence

from torch import nn

from ksm_hw.learning.mask_equations import threshold_mask
from ksm_hw.learning.methods.masked_weights import mask_layers
from ksm_hw.learning.methods.method import Method
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.task_pack import TaskPack


def _prepare(network: nn.Module, options: LearningOptions, _older: Sequence[TaskPack]) -> None:
    mask_of = functools.partial(threshold_mask, constants=options.constants)
    mask_layers(network, "element", options.constants.initial, mask_of, soft=False)


PIGGYBACK = Method(
    "piggyback",
    _prepare,
    own=lambda network, options: [],
    binarise=threshold_mask,
    reads=frozenset({"mask_rate", "granularity", "initial", "threshold"}),
)
