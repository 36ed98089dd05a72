"""The head alone, over the features of the backbone: what a task costs at least."""

from torch import nn

from ksm_hw.learning.methods.method import Method
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.mask_format import GRANULARITIES


def _start_epoch(network: nn.Module, _options: LearningOptions, _number: int) -> None:
    network.eval()  # Over frozen features the BatchNorms' statistics are the backbone's, and nothing is dropped.


HEAD = Method("head", own=lambda network, options: [], start_epoch=_start_epoch, granularities=GRANULARITIES)
