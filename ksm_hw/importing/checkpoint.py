"""What an importer makes of a checkpoint, and what all importers read it with.

The methods' networks are `model.shared`, the backbone without its classifier, and a classifier for each task. Its
modules have names and numbers of their own there, which lead to layers of our backbone through `LayerNames`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.masks.mask_format import Granularity
from ksm_hw.models.backbones import head_path
from ksm_hw.models.weights import plain_name
from ksm_hw.torch_files.records import attribute, mapping_of

Array = npt.NDArray[Any]
_REAL_MASK = ".mask_real"
THRESHOLD = 5e-3  # Of the real-valued masks of Piggyback and CPG: above it a weight stays.


class FormError(Exception):
    """A checkpoint is not as its method's scripts write it, or does not fit the backbone; the message says in what."""


@dataclass(frozen=True)
class ImportedTask:
    """A task out of a checkpoint.

    Attributes:
        name: what the checkpoint calls it, or the user.
        masks: what makes the soft mask of each masked layer, by its path in the backbone: float32 or int8, in the shape
            that the granularity gives; smaller where the task was learned before the network grew. They are made one
            after the other, because those of all tasks may take many times the memory that the file does.
        tensors: the task's own BatchNorms, biases and slopes by their names in the backbone's state dict, float32.
        head_weight, head_bias: float32 [classes, features] and [classes].
        source: what the checkpoint calls it, where the user gave it another name.
    """

    name: str
    masks: Mapping[str, Callable[[], Array]]
    tensors: Mapping[str, npt.NDArray[np.float32]]
    head_weight: npt.NDArray[np.float32]
    head_bias: npt.NDArray[np.float32]
    source: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        granularity: what shares a mask value.
        tensors: the backbone's, by their names in its state dict, float32; None where the file has none.
        tasks: in the order in which they were learned.
        notes: what the file does not say, and was assumed.
    """

    granularity: Granularity
    tensors: Mapping[str, npt.NDArray[np.float32]] | None
    tasks: tuple[ImportedTask, ...]
    notes: tuple[str, ...] = ()


def numbers(value: object, what: str) -> npt.NDArray[np.float32]:
    """A tensor's numbers as float32, in C order.

    Raises:
        FormError: it is no tensor of plain numbers, or one that is not finite.
    """
    if not isinstance(value, torch.Tensor) or value.is_complex() or not value.numel():
        raise FormError(f"{what} is no tensor of numbers")
    array = value.detach().float().contiguous().numpy()
    if not np.isfinite(array).all() or (what.endswith("running_var") and (array < 0).any()):
        raise FormError(f"{what} has numbers that are not finite, or variances below 0")
    return array


def whole_numbers(value: object, what: str) -> Array:
    """A tensor's numbers of any integer type, as they are.

    Raises:
        FormError: it is no tensor of integers.
    """
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex() or not value.numel():
        raise FormError(f"{what} is no tensor of integers")
    return value.detach().contiguous().numpy()


def entries(content: object, what: str) -> Mapping[Any, Any]:
    """The entries of a dictionary, or the state dict of a module.

    Raises:
        FormError: it is neither.
    """
    found = mapping_of(content)
    if found is None:
        raise FormError(f"it has no {what}")
    return found


def plain_tensors(content: object, what: str) -> dict[str, torch.Tensor]:
    """The named tensors of a state dict or a module, without the wrappers (`module.`) in their names.

    Raises:
        FormError: there are none.
    """
    found = {
        plain_name(name): tensor
        for name, tensor in entries(content, what).items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if not found:
        raise FormError(f"its {what} holds no tensors")
    return found


def is_real_mask(name: object) -> bool:
    """Whether a tensor of KSM's and Piggyback's networks, by its name, is what a layer's mask is made of."""
    return isinstance(name, str) and name.endswith(_REAL_MASK)


def real_masks(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors by the names of their layers.

    Raises:
        FormError: there are none.
    """
    found = {name.removesuffix(_REAL_MASK): tensor for name, tensor in tensors.items() if is_real_mask(name)}
    if not found:
        raise FormError("its model has no masks (mask_real)")
    return found


def dataset_of(arguments: object) -> str:
    """The name of the data set that a script was started with; `task` where its arguments have none."""
    dataset = attribute(arguments, "dataset")
    return dataset if isinstance(dataset, str) else "task"


def head_of(tensors: Mapping[str, Any], prefix: str, what: str) -> tuple[Array, Array]:
    """Weight and bias of a linear layer, whose names begin with a prefix; a bias that is not there is 0.

    Raises:
        FormError: they are no weight and bias.
    """
    weight = numbers(tensors.get(f"{prefix}weight"), f"the weight of {what}")
    bias = np.zeros(len(weight), np.float32)
    if f"{prefix}bias" in tensors:
        bias = numbers(tensors[f"{prefix}bias"], f"the bias of {what}")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise FormError(f"{what} has a weight {list(weight.shape)} and a bias {list(bias.shape)}")
    return weight, bias


def classifier_numbers(tensors: Mapping[str, Any]) -> list[int]:
    """The k of all `classifiers.<k>.weight`, in order."""
    parts = [name.split(".") for name in tensors]
    return sorted(int(part[1]) for part in parts if len(part) == 3 and part[0] == "classifiers" and part[1].isdecimal())


@dataclass(frozen=True)
class LayerNames:
    """How a checkpoint may call the layers of a backbone.

    Attributes:
        own: paths of all modules in the backbone.
        shared: for each way in which scripts make `model.shared` of it, the modules there in the order of
            `enumerate(model.shared.modules())`: their paths there, and in the backbone, "" for a container.
        shapes: of the weights of convolutions and linear layers by their paths in the backbone.
    """

    own: frozenset[str]
    shared: tuple[tuple[tuple[str, str], ...], ...]
    shapes: Mapping[str, tuple[int, ...]]

    def by_path(self, paths: Collection[str]) -> dict[str, str]:
        """From the paths of modules in a checkpoint to those in the backbone.

        Raises:
            FormError: there is no way to call the backbone's modules so.
        """
        ways = [{path: path for path in self.own}]
        for modules in self.shared:
            ways.append({f"shared.{path}": own for path, own in modules if own})
            ways.append({path: own for path, own in modules if own})
        best = max(ways, key=lambda way: sum(path in way for path in paths))
        if unknown := sorted(set(paths) - best.keys()):
            raise FormError(f"the backbone has no layer '{unknown[0][:100]}' ({len(unknown)} such layers in all)")
        return {path: best[path] for path in paths}

    def by_number(self, shapes: Mapping[int, tuple[int, ...]]) -> dict[int, str]:
        """From the numbers of modules in `model.shared.modules()` to paths in the backbone.

        Args:
            shapes: of the weights of the modules.

        Raises:
            FormError: no backbone of this name has such weights there.
        """

        def fits(modules: tuple[tuple[str, str], ...], number: int) -> bool:
            return 0 <= number < len(modules) and self.shapes.get(modules[number][1]) == shapes[number]

        best = max(self.shared, key=lambda modules: sum(fits(modules, number) for number in shapes), default=())
        for number, shape in shapes.items():
            if not fits(best, number):
                raise FormError(f"the backbone's module {number} has no weight of shape {list(shape)}")
        return {number: best[number][1] for number in shapes}


def layer_names(network: nn.Module) -> LayerNames:
    """How a checkpoint may call the layers of a backbone."""
    own = {module: path for path, module in network.named_modules()}
    shared = tuple(
        tuple((path, own.get(module, "")) for path, module in made.named_modules()) for made in _shared(network)
    )
    head = head_path(network)
    shapes = {
        path: tuple(module.weight.shape)
        for path, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and path != head
    }
    return LayerNames(frozenset(own.values()), shared, shapes)


def _shared(network: nn.Module) -> list[nn.Module]:
    """The ways in which scripts make `model.shared`: of ResNets, of DenseNets, of VGGs."""
    children = dict(network.named_children())
    head = head_path(network).partition(".")[0]
    features, classifier = children.get("features"), children.get("classifier")
    made: list[nn.Module] = [_sequential({name: child for name, child in children.items() if name != head})]
    if features is not None:
        made.append(features)
    if isinstance(features, nn.Sequential) and isinstance(classifier, nn.Sequential):
        rest = [nn.Flatten(), *list(classifier)[:-1]]
        made += [nn.Sequential(*features, *rest), nn.Sequential(features, *rest)]
    return made


def _sequential(modules: Mapping[str, nn.Module]) -> nn.Module:
    made = nn.Sequential()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


def vectors(
    tensors: Mapping[str, torch.Tensor], names: LayerNames, known: Collection[str], skip: Callable[[str], bool]
) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a checkpoint that have a name in the backbone's state dict, by that name.

    Args:
        tensors: by their names in the checkpoint.
        names: how it may call the backbone's layers.
        known: names in the backbone's state dict.
        skip: which names are not looked at.

    Raises:
        FormError: a layer is none of the backbone's, or a tensor has numbers that are not finite.
    """
    wanted = [name for name in tensors if not skip(name) and not name.endswith("num_batches_tracked")]
    paths = names.by_path({name.rpartition(".")[0] for name in wanted})
    found = {}
    for name in wanted:
        path, _, leaf = name.rpartition(".")
        if (own := f"{paths[path]}.{leaf}") in known:
            found[own] = numbers(tensors[name], f"'{name}'")
    return found
