"""All weights: the upper bound that papers compare with. The network is the task's alone, in a bundle of its own."""

from collections.abc import Sequence

from torch import nn

from ksm_hw.learning.methods.method import Method, learn_norms
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.mask_format import GRANULARITIES
from ksm_hw.masks.task_pack import TaskPack


def _prepare(network: nn.Module, options: LearningOptions, _older: Sequence[TaskPack]) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    learn_norms(network, options)


FINE_TUNING = Method(
    "fine-tuning",
    _prepare,
    own=lambda network, options: [],
    changes_weights=True,
    alone=True,
    granularities=GRANULARITIES,
    reads=frozenset({"mask_rate", "norm_rate"}),
)
