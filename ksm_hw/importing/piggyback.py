"""Piggyback's checkpoints: masks packed by `pack.py`, or the whole model object that training saves.

`{dataset2masks: {dataset: {module number: bytes of the weight's shape: 0, 1, 255 for -1}}, dataset2classifiers:
{dataset: nn.Linear}}`, or `{args, model: the object}`, whose modules have `mask_real` beside the frozen weights.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from ksm_hw.importing.checkpoint import (
    THRESHOLD,
    Array,
    Checkpoint,
    FormError,
    ImportedTask,
    classifier_numbers,
    dataset_of,
    entries,
    head_of,
    is_real_mask,
    layer_names,
    numbers,
    plain_tensors,
    real_masks,
    vectors,
    whole_numbers,
)
from ksm_hw.torch_files.records import Record, attribute, is_module


def is_piggyback(content: Mapping[Any, Any]) -> bool:
    """Whether a file's content is of this form."""
    if "dataset2masks" in content:
        return True
    model = content.get("model")
    return is_module(model) and any(map(is_real_mask, entries(model, "model")))


def read_piggyback(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    """Reads the content of a checkpoint over a backbone.

    Raises:
        FormError: it is not of this form, or over another backbone.
    """
    return _read_packed(content, network) if "dataset2masks" in content else _read_training(content, network)


def _read_packed(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    names = layer_names(network)
    classifiers = entries(content.get("dataset2classifiers"), "dataset2classifiers")
    tasks = []
    for dataset, masks in entries(content["dataset2masks"], "dataset2masks").items():
        values = {
            number: whole_numbers(mask, f"mask {number} of '{dataset}'")
            for number, mask in entries(masks, f"masks of '{dataset}'").items()
            if isinstance(number, int)
        }
        paths = names.by_number({number: mask.shape for number, mask in values.items()})
        head = head_of(entries(classifiers.get(dataset), f"classifier of '{dataset}'"), "", f"the head of '{dataset}'")
        for number, mask in values.items():
            if not np.isin(mask, (0, 1, 255) if mask.dtype == np.uint8 else (0, 1, -1, 255)).all():
                raise FormError(f"the mask of '{paths[number]}' has other values than 0, 1 and 255 (for -1)")
        by_path = {paths[number]: functools.partial(_signed, mask) for number, mask in values.items()}
        tasks.append(ImportedTask(str(dataset), by_path, {}, *head))
    return Checkpoint("element", None, tuple(tasks), ("BatchNorms and biases are those of the backbone",))


def _signed(mask: Array) -> Array:
    """A mask's bytes, which are 0, 1 and 255 or -1, as -1, 0 and 1."""
    return np.where(mask == 0, np.int8(0), np.where(mask == 1, np.int8(1), np.int8(-1)))


def _read_training(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    model = content.get("model")
    tensors = plain_tensors(model, "model")
    names = layer_names(network)
    real = real_masks(tensors)
    paths = names.by_path(real)
    ternary = _is_ternary(model, content.get("args"))
    masks = {}
    for name, tensor in real.items():
        mask = numbers(tensor, f"the mask of '{name}'")
        if mask.shape != names.shapes.get(paths[name]):
            raise FormError(f"the mask of '{name}' has shape {list(mask.shape)}, which is not its weight's")
        masks[paths[name]] = functools.partial(_threshold, mask, ternary)
    shared = vectors(tensors, names, network.state_dict(), lambda name: name.startswith("classifier"))
    last = (classifier_numbers(tensors) or [0])[-1]
    prefix = "classifier." if "classifier.weight" in tensors else f"classifiers.{last}."
    head = head_of(tensors, prefix, "the classifier")
    task = ImportedTask(dataset_of(content.get("args")), masks, {}, *head)
    return Checkpoint("element", shared, (task,), (f"masks are {'ternary' if ternary else 'binary'}, from 0.005 on",))


def _threshold(real: Array, ternary: bool) -> Array:
    ones = (real > THRESHOLD).astype(np.int8)
    return ones - (real < 0) if ternary else ones


def _is_ternary(model: Any, arguments: Any) -> bool:
    """Whether the model's layers, or the command that trained it, name the ternary threshold."""
    said = [attribute(arguments, "threshold_fn")]
    waiting = [model]
    for _ in range(10_000):
        if not waiting:
            break
        module = waiting.pop()
        threshold = attribute(module, "threshold_fn")
        said.append(str(threshold.made_by) if isinstance(threshold, Record) else threshold)
        inner = attribute(module, "_modules")
        waiting += [each for each in inner.values() if is_module(each)] if isinstance(inner, dict) else []
    return any("ternar" in str(each).lower() for each in said if each is not None)
