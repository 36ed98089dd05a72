"""PackNet's checkpoints: the whole model object, whose weights all tasks share, and which task owns each weight.

`{model: the object, previous_masks: {module number: bytes of the weight's shape, the owner's number, 0 pruned},
dataset2idx: {dataset: number}, dataset2biases: {dataset: {module number: bias}}}`. Task n computes with the weights of
the owners 1 to n.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from ksm_hw.importing.checkpoint import (
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
from ksm_hw.torch_files.records import attribute


def is_packnet(content: Mapping[Any, Any]) -> bool:
    """Whether a file's content is of this form."""
    return "previous_masks" in content


def read_packnet(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    """Reads the content of a checkpoint over a backbone, whose weights are the file's.

    Raises:
        FormError: it is not of this form, or over another backbone.
    """
    tensors = plain_tensors(content.get("model"), "model")
    names = layer_names(network)
    shared = vectors(tensors, names, network.state_dict(), lambda name: name.startswith("classifier"))
    owners = {
        number: whole_numbers(mask, f"mask {number}")
        for number, mask in entries(content.get("previous_masks"), "previous_masks").items()
        if isinstance(number, int)
    }
    paths = names.by_number({number: mask.shape for number, mask in owners.items()})
    indices = entries(content.get("dataset2idx"), "dataset2idx")
    biases = entries(content.get("dataset2biases", {}), "dataset2biases")
    tasks = []
    for dataset, head_number in _heads(content.get("model"), tensors, indices).items():
        index = indices[dataset]
        if not isinstance(index, int):
            raise FormError(f"the number of '{dataset}' in its dataset2idx is none")
        masks = {paths[number]: functools.partial(_mask, mask, index) for number, mask in owners.items()}
        head = head_of(tensors, f"classifiers.{head_number}.", f"the classifier of '{dataset}'")
        tasks.append(ImportedTask(str(dataset), masks, _biases(biases.get(dataset), dataset, paths, names), *head))
    if not tasks:
        raise FormError("no classifier in its model belongs to a data set of dataset2idx")
    return Checkpoint("element", shared, tuple(tasks))


def _mask(owners: Array, index: int) -> Array:
    """What a task computes with."""
    return ((owners >= 1) & (owners <= index)).astype(np.int8)


def _heads(model: Any, tensors: Mapping[str, Any], indices: Mapping[Any, Any]) -> dict[Any, int]:
    """The number of each data set's classifier: its place in `model.datasets`, or by its number where there is none."""
    inner = attribute(model, "module")  # Of a DataParallel.
    datasets = attribute(model if inner is None else inner, "datasets")
    if not isinstance(datasets, list):
        datasets = [dataset for dataset, _ in sorted(indices.items(), key=lambda item: str(item[1]).zfill(9))]
    known = set(classifier_numbers(tensors))
    return {
        dataset: place
        for place, dataset in enumerate(datasets)
        if isinstance(dataset, (str, int)) and dataset in indices and place in known
    }


def _biases(found: Any, dataset: Any, paths: Mapping[int, str], names: LayerNames) -> dict[str, Array]:
    if found is None:
        return {}
    own = {}
    for number, bias in entries(found, f"biases of '{dataset}'").items():
        if bias is None:  # A layer without one.
            continue
        if number not in paths:
            raise FormError(f"'{dataset}' has a bias for module {number}, which has no mask")
        array = numbers(bias, f"bias {number} of '{dataset}'")
        if array.shape != names.shapes[paths[number]][:1]:
            raise FormError(f"bias {number} of '{dataset}' has shape {list(array.shape)}")
        own[f"{paths[number]}.bias"] = array
    return own
