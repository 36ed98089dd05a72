"""CPG's checkpoints: the state dict of the widest network, owners of its weights, and what each task has of its own.

`{model_state_dict, dataset_history, dataset2num_classes, masks: {module: owners}, shared_layer_info: {dataset: {bias,
bn_layer_…, piggymask, prelu_layer_weight: {module: tensor}, network_width_multiplier}}}`. Task n computes with the
weights of the owners 1 to n where its piggymask lies above 0.005. Tasks from before the network grew have smaller
tensors: theirs are the first channels of each layer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from ksm_hw.importing.checkpoint import (
    THRESHOLD,
    Array,
    Checkpoint,
    FormError,
    ImportedTask,
    LayerNames,
    classifier_numbers,
    entries,
    head_of,
    layer_names,
    numbers,
    plain_tensors,
    vectors,
    whole_numbers,
)
from ksm_hw.masks.soft_mask import padded
from ksm_hw.models.backbones import head_path
from ksm_hw.models.weights import plain_name

_OWN = {
    "bias": "bias",
    "bn_layer_running_mean": "running_mean",
    "bn_layer_running_var": "running_var",
    "bn_layer_weight": "weight",
    "bn_layer_bias": "bias",
    "prelu_layer_weight": "weight",
}


def is_cpg(content: Mapping[Any, Any]) -> bool:
    """Whether a file's content is of this form."""
    return "shared_layer_info" in content


def read_cpg(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    """Reads the content of a checkpoint over a backbone, whose weights, and widths, are the file's.

    Raises:
        FormError: it is not of this form, or over another backbone.
    """
    tensors = plain_tensors(content.get("model_state_dict"), "model_state_dict")
    names = layer_names(network)
    heads = ("classifiers.", f"{head_path(network)}.")  # The tasks', and that of a network that still has its own.
    shared = vectors(tensors, names, network.state_dict(), lambda name: name.startswith(heads))
    owners = {
        name: whole_numbers(mask, f"the mask of '{name}'")
        for name, mask in _by_path(content.get("masks"), "masks", names).items()
    }
    for name, mask in owners.items():
        if f"{name}.weight" not in shared or mask.shape != shared[f"{name}.weight"].shape:
            raise FormError(f"the mask of '{name}' has shape {list(mask.shape)}, which is not its weight's")
    history = content.get("dataset_history")
    if not isinstance(history, (list, tuple)) or not history:
        raise FormError("it has no dataset_history")
    infos = entries(content.get("shared_layer_info"), "shared_layer_info")
    known = classifier_numbers(tensors)
    tasks = []
    for number, dataset in enumerate(history):
        if number not in known or not isinstance(dataset, str):
            continue
        info = entries(infos.get(dataset), f"shared_layer_info of '{dataset}'")
        masks = _masks(owners, number + 1, _by_path(info.get("piggymask"), "piggymask", names))
        head = head_of(tensors, f"classifiers.{number}.", f"the classifier of '{dataset}'")
        tasks.append(ImportedTask(dataset, masks, _own_tensors(info, names, dataset), *head))
    if not tasks:
        raise FormError("no classifier in it belongs to a data set of dataset_history")
    return Checkpoint("element", shared, tuple(tasks))


def _by_path(content: Any, what: str, names: LayerNames) -> dict[str, Any]:
    """A dictionary by paths in the backbone; nothing for None, as the first task's piggymasks are."""
    if content is None:
        return {}
    found = {plain_name(f"{name}.")[:-1]: value for name, value in entries(content, what).items() if value is not None}
    paths = names.by_path(found)
    return {paths[name]: value for name, value in found.items()}


def _masks(
    owners: Mapping[str, Array], number: int, piggymasks: Mapping[str, Any]
) -> Mapping[str, Callable[[], Array]]:
    masks = {}
    for path, owner in owners.items():
        real = None
        if path in piggymasks:
            real = numbers(piggymasks[path], f"the piggymask of '{path}'")
            if real.ndim != owner.ndim or any(map(int.__gt__, real.shape, owner.shape)):
                raise FormError(f"the piggymask of '{path}' has shape {list(real.shape)}, larger than its weight")
        masks[path] = functools.partial(_mask, owner, number, real)
    return masks


def _mask(owners: Array, number: int, real: Array | None) -> Array:
    """What a task computes with. Weights that grew later belong to later tasks, so that a mask ends where it should."""
    own = (owners >= 1) & (owners <= number)
    if real is not None:
        own &= padded(real > THRESHOLD, own.shape)
    return own.astype(np.int8)


def _own_tensors(info: Mapping[Any, Any], names: LayerNames, dataset: str) -> dict[str, Array]:
    own = {}
    for key, leaf in _OWN.items():
        for path, value in _by_path(info.get(key), key, names).items():
            own[f"{path}.{leaf}"] = numbers(value, f"{key} of '{dataset}', '{path}.{leaf}'")
    return own
