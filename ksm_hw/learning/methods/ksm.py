"""KSM: soft masks over frozen weights, and norms of the task's own (`mask_equations`)."""

import functools
from collections.abc import Sequence

from torch import nn

from ksm_hw.learning.mask_equations import binary_mask, soft_mask
from ksm_hw.learning.methods.masked_weights import mask_layers
from ksm_hw.learning.methods.method import Method, learn_norms
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.mask_format import GRANULARITIES
from ksm_hw.masks.task_pack import TaskPack


def _prepare(network: nn.Module, options: LearningOptions, _older: Sequence[TaskPack]) -> None:
    mask_of = functools.partial(soft_mask, constants=options.constants)
    soft = options.constants.scale_weight != 0
    mask_layers(network, options.granularity or "kernel", options.constants.initial, mask_of, soft)
    learn_norms(network, options)


KSM = Method(
    "ksm",
    _prepare,
    binarise=binary_mask,
    granularities=GRANULARITIES,
    reads=frozenset(
        {
            "mask_rate",
            "norm_rate",
            "layer_norms",
            "granularity",
            "initial",
            "threshold",
            "slope",
            "temperature",
            "scale_weight",
            "scale_bits",
        }
    ),
)
