"""PackNet (Mallya, Lazebnik, CVPR 2018, arXiv 1711.05769): train the free weights, prune them, train what is left.

A task computes with its own weights and all of older tasks, and frees most of its own again: those of the least
magnitude in each layer, which become 0. In the papers ImageNet is the first task. It is none of a bundle, so the first
one learned takes its place: all weights are free for it, from their pretrained values on, and with them BatchNorms,
LayerNorms and biases, which stay as they are for all later tasks.
"""

from collections.abc import Sequence

from torch import nn

from ksm_hw.learning.methods.free_weights import learn_free_weights, prune
from ksm_hw.learning.methods.method import Method, learn_biases, learn_norms, train_mode
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.task_pack import TaskPack


def training_epochs(epochs: int) -> int:
    """The epochs before a task is pruned: two thirds, as 20 of the paper's 30."""
    return epochs - max(epochs // 3, 1)


def _prepare(network: nn.Module, options: LearningOptions, older: Sequence[TaskPack]) -> None:
    learn_free_weights(network, older)
    if not older:
        learn_norms(network, options)
        learn_biases(network)


def _start_epoch(network: nn.Module, options: LearningOptions, number: int) -> None:
    if number == training_epochs(options.epochs) + 1:
        prune(network, options.prune)
    train_mode(network)


PACKNET = Method(
    "packnet",
    _prepare,
    own=lambda network, options: [],
    start_epoch=_start_epoch,
    changes_weights=True,
    fewest_epochs=2,
    least_free=0.01,
    reads=frozenset({"mask_rate", "norm_rate", "layer_norms", "granularity", "prune"}),
)
