"""CPG (Hung et al., NeurIPS 2019, arXiv 1910.06562): compacting, picking and growing.

A task picks among the weights of older tasks by a learned binary mask, as Piggyback has it, and learns the free ones.
Where it misses its goal of accuracy the network grows, and it starts again. Then it is pruned epoch by epoch as long as
it keeps the goal; what is pruned is free for later tasks. Norms and biases are its own.
"""

import functools
from collections.abc import Sequence

from torch import nn

from ksm_hw.learning.mask_equations import threshold_mask
from ksm_hw.learning.methods.free_weights import learn_free_weights, prune
from ksm_hw.learning.methods.method import (
    Method,
    Verdict,
    bias_names,
    learn_biases,
    learn_norms,
    norm_names,
    train_mode,
)
from ksm_hw.learning.methods.packnet import training_epochs
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.task_pack import TaskPack

SLACK = 0.01  # Of accuracy in 0…1 that pruning may cost where a user gives no goal: a few images of a validation part.


def pruned_share(options: LearningOptions, number: int) -> float:
    """The share of the task's weights that is pruned in an epoch, which grows as fast as Zhu and Gupta have it: s·(1 −
    (1 − k/n)³) in the k-th of n epochs that prune (arXiv 1710.01878)."""
    first = training_epochs(options.epochs)
    done = max(number - first, 0) / (options.epochs - first)
    return options.prune * (1 - (1 - done) ** 3)


def _prepare(network: nn.Module, options: LearningOptions, older: Sequence[TaskPack]) -> None:
    mask_of = functools.partial(threshold_mask, constants=options.constants)
    learn_free_weights(network, older, mask_of, options.constants.initial)
    learn_norms(network, options)
    learn_biases(network)


def _start_epoch(network: nn.Module, options: LearningOptions, number: int) -> None:
    if number > training_epochs(options.epochs):
        prune(network, pruned_share(options, number))
    train_mode(network)


def _end_epoch(options: LearningOptions, accuracies: Sequence[float]) -> Verdict:
    first = training_epochs(options.epochs)
    if len(accuracies) < first:
        return ""
    reached, goal = accuracies[-1], options.accuracy_goal
    if goal is None:
        goal = accuracies[first - 1] - SLACK
    if reached >= goal:
        return ""
    return "grow" if len(accuracies) == first else "undo"


CPG = Method(
    "cpg",
    _prepare,
    own=lambda network, options: [*norm_names(network, options), *bias_names(network)],
    start_epoch=_start_epoch,
    end_epoch=_end_epoch,
    binarise=threshold_mask,
    changes_weights=True,
    grows=True,
    fewest_epochs=2,
    validation=0.1,
    reads=frozenset(
        {
            "mask_rate",
            "norm_rate",
            "layer_norms",
            "granularity",
            "initial",
            "threshold",
            "prune",
            "accuracy_goal",
            "max_width",
        }
    ),
)
