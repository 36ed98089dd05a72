"""KSM's own checkpoints: a state dict with the real-valued masks, BatchNorms and classifiers, without the backbone.

`{args: Namespace, epoch, accuracy, errors, model: {shared.<module>.mask_real, shared.<BatchNorm>…, classifiers.<k>…}}`;
classifier 0 is ImageNet's, 1 the task's, which is called as `args.dataset`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ksm_hw.importing.checkpoint import (
    Array,
    Checkpoint,
    FormError,
    ImportedTask,
    LayerNames,
    classifier_numbers,
    dataset_of,
    head_of,
    is_real_mask,
    layer_names,
    numbers,
    plain_tensors,
    real_masks,
    vectors,
)
from ksm_hw.learning.mask_equations import soft_mask
from ksm_hw.masks.mask_format import Granularity, mask_shape


def is_ksm(content: Mapping[Any, Any]) -> bool:
    """Whether a file's content is of this form: a state dict with masks."""
    model = content.get("model")
    return isinstance(model, Mapping) and any(map(is_real_mask, model))


def read_ksm(content: Mapping[Any, Any], network: nn.Module) -> Checkpoint:
    """Reads the content of a checkpoint over a backbone.

    Raises:
        FormError: it is not of this form, or over another backbone.
    """
    tensors = plain_tensors(content.get("model"), "model")
    names = layer_names(network)
    real = real_masks(tensors)
    paths = names.by_path(real)
    granularity = _granularity({paths[name]: tuple(mask.shape) for name, mask in real.items()}, names)
    masks = {
        paths[name]: functools.partial(
            _soft_mask,
            numbers(mask, f"the mask of '{paths[name]}'"),
            mask_shape(names.shapes[paths[name]], granularity),
        )
        for name, mask in real.items()
    }
    own = vectors(tensors, names, network.state_dict(), lambda name: name.startswith("classifier") or name in real)
    chosen = classifier_numbers(tensors)
    if not chosen:
        raise FormError("its model has no classifiers")
    number = 1 if 1 in chosen else chosen[-1]
    head = head_of(tensors, f"classifiers.{number}.", f"classifier {number}")
    task = ImportedTask(
        dataset_of(content.get("args")),
        masks,
        {name: array for name, array in own.items() if array.ndim == 1},
        *head,
    )
    return Checkpoint(granularity, None, (task,))


def _granularity(shapes: Mapping[str, tuple[int, ...]], names: LayerNames) -> Granularity:
    """What shares a mask value in all layers; the coarsest where several fit."""
    candidates: tuple[Granularity, ...] = ("channel", "kernel", "element")
    for granularity in candidates:
        if all(
            path in names.shapes and _squeezed(shape) == _squeezed(mask_shape(names.shapes[path], granularity))
            for path, shape in shapes.items()
        ):
            return granularity
    raise FormError(
        f"its masks are neither kernel-, element- nor channel-wise over the backbone: that of '{next(iter(shapes))}' "
        f"has shape {list(next(iter(shapes.values())))}"
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end: masks of linear layers may have them or not."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _soft_mask(real: Array, shape: tuple[int, ...]) -> Array:
    return soft_mask(torch.from_numpy(real)).numpy().reshape(shape)
