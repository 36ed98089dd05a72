"""What a method is: the functions in which methods differ, and the parts of a network that they learn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ksm_hw.learning.mask_equations import Binarise
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.mask_format import Granularity
from ksm_hw.masks.mask_names import bias_of
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import batch_norm_names, layer_norm_names, maskable_layers

# What becomes of learning after an epoch: it goes on; it ends with the state before the epoch; it ends, and the network
# is too small.
Verdict = Literal["", "undo", "grow"]


def train_mode(network: nn.Module) -> None:
    """Puts the network into training mode, but BatchNorms that nothing learns: their statistics are the backbone's."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def norm_names(network: nn.Module, options: LearningOptions) -> list[str]:
    """The names of the tensors that a task learns with its BatchNorms and LayerNorms."""
    return [*batch_norm_names(network), *(layer_norm_names(network) if options.layer_norms else [])]


def nothing(_network: nn.Module, _options: LearningOptions, _older: Sequence[TaskPack]) -> None:
    """Prepares nothing."""


@dataclass(frozen=True)
class Method:
    """A way to learn a task over a pretrained backbone. Every method learns a fresh head; what else, is said here.

    Attributes:
        name: for the command line and in task packs.
        prepare: of a network that is frozen but for a fresh head, for the older tasks over its weights: makes what is
            learned require a gradient, in place, and gives weights their parametrizations. Raises UserError where it
            cannot.
        own: names of the network's tensors that the task has instead of the backbone's.
        start_epoch: puts the network into its mode, and prunes; takes the number of the epoch, from 1.
        end_epoch: what becomes of learning; takes the accuracies on the validation part after each epoch so far.
        binarise: from real-valued masks to binary ones; None where there are no real-valued masks.
        granularities: what may share a mask value; the first is the paper's.
        changes_weights: whether the backbone is another one afterwards.
        alone: whether no other task can be over the same weights.
        grows: whether it has a goal of accuracy, for which the network may become wider.
        fewest_epochs: that the method has something to do in.
        validation: share of the training images that it looks at, where a user says nothing.
        least_free: share of the weights, which no older task uses, that it needs at least.
        reads: names of options that not every method reads, and this one does (`table.SPECIAL_OPTIONS`).
    """

    name: str
    prepare: Callable[[nn.Module, LearningOptions, Sequence[TaskPack]], None] = nothing
    own: Callable[[nn.Module, LearningOptions], list[str]] = norm_names
    start_epoch: Callable[[nn.Module, LearningOptions, int], None] = lambda network, options, number: train_mode(
        network
    )
    end_epoch: Callable[[LearningOptions, Sequence[float]], Verdict] = lambda options, accuracies: ""
    binarise: Binarise | None = None
    granularities: tuple[Granularity, ...] = ("element",)
    changes_weights: bool = False
    alone: bool = False
    grows: bool = False
    fewest_epochs: int = 1
    validation: float = 0.0
    least_free: float = 0.0
    reads: frozenset[str] = frozenset()


def learn_norms(network: nn.Module, options: LearningOptions) -> None:
    """Lets the BatchNorms be learned, and the LayerNorms where they are wanted."""
    for name in norm_names(network, options):
        if not name.endswith(("running_mean", "running_var")):
            network.get_parameter(name).requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The statistics of a task must settle within its few hundred steps, whatever momentum the backbone had.
            module.momentum = 0.1


def bias_names(network: nn.Module) -> list[str]:
    """The names of the biases of the layers that a mask may cover."""
    state = network.state_dict()
    return [name for layer in maskable_layers(network) if (name := bias_of(layer)) in state]


def learn_biases(network: nn.Module) -> None:
    """Lets the biases of layers be learned."""
    for name in bias_names(network):
        network.get_parameter(name).requires_grad_(True)
