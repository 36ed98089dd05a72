"""A backbone that is replaced by another, of the same network with other or wider weights, under tasks learned over it.

PackNet and CPG change weights that no task uses yet, and CPG makes layers wider. A task is carried over only where its
masked weights are bit for bit what they were. In a wider network it has the first channels of each layer: its masks are
0 elsewhere, and so is what its BatchNorms and biases give there, and its head takes nothing of it. That holds only for
networks that keep a layer's channels in their order, which is not seen here (`models.backbones.check_can_grow`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.mask_format import mask_shape
from ksm_hw.masks.mask_names import layer_of
from ksm_hw.masks.soft_mask import PackedMask, broadcast_mask, pack_mask, padded, padded_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack

Tensors = Mapping[str, npt.NDArray[np.float32]]


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by their names: a network that grew has others than its architecture."""
    return {name: array.shape for name, array in tensors.items()}


def by_kind(own: Tensors, backbone: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a task has instead of a backbone's tensors, apart: those of BatchNorms, and all others."""
    norms = {name for name in own if f"{name.rpartition('.')[0]}.running_mean" in backbone}
    return (
        {name: array for name, array in own.items() if name in norms},
        {name: array for name, array in own.items() if name not in norms},
    )


def padded_tensor(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A BatchNorm's tensor, a bias or slopes for more channels: those give 0."""
    return padded(array, shape, 1 if name.endswith("running_var") else 0)


def carried_over(pack: TaskPack, old: Tensors, new: Tensors, sha256: str, head: tuple[int, ...]) -> TaskPack:
    """The task over another backbone, where it computes what it did.

    Args:
        pack: the task.
        old, new: the tensors that tasks share, of the backbone that it was learned over and of the other.
        sha256: of the other.
        head: shape of what a class has in the other's heads, [features] or, of a convolution, [features, 1, 1].

    Raises:
        UserError: one of its weights would change.
    """
    if missing := sorted(old.keys() - new.keys()):
        raise _changes(pack, f"'{missing[0]}' is not there")
    if len(head) + 1 != pack.head_weight.ndim or any(map(int.__gt__, pack.head_weight.shape[1:], head)):
        raise _changes(pack, f"the head takes {list(head)} features, and its own {list(pack.head_weight.shape[1:])}")
    masks: dict[str, PackedMask] = {}
    before, own = pack.own_tensors, dict[str, npt.NDArray[np.float32]]()
    for name, wide in new.items():
        layer, narrow = layer_of(name), old.get(name)
        if narrow is None or narrow.ndim != wide.ndim or any(map(int.__gt__, narrow.shape, wide.shape)):
            raise _changes(pack, f"'{name}' has shape {list(wide.shape)}")
        if wide.ndim == 1:
            mine = before.get(name, narrow)
            if name in before or not np.array_equal(mine, wide):
                own[name] = padded_tensor(name, mine, wide.shape)
        elif layer in pack.masks or narrow.shape != wide.shape:
            masks[layer] = _carried_mask(pack, layer, narrow, wide)
        elif not np.array_equal(narrow, wide):
            raise _changes(pack, f"'{name}', which it uses without a mask, is another")
    norms, parameters = by_kind(own, new)
    return dataclasses.replace(
        pack,
        backbone_sha256=sha256,
        masks=masks,
        batch_norms=norms,
        parameters=parameters,
        head_weight=padded(pack.head_weight, (len(pack.head_weight), *head)),
        calibration=pack.calibration and _carried_calibration(pack.calibration, new, sha256),
    )


def _carried_calibration(found: Calibration, new: Tensors, sha256: str) -> Calibration:
    """The ranges stay true of a network that computes what it did: what is new in it is 0, or is not looked at."""
    biases = {
        name: padded_tensor(name, array, new[name].shape if name in new else array.shape)
        for name, array in found.biases.items()
    }
    return dataclasses.replace(found, backbone_sha256=sha256, biases=biases)


def _carried_mask(
    pack: TaskPack, layer: str, narrow: npt.NDArray[np.float32], wide: npt.NDArray[np.float32]
) -> PackedMask:
    """A layer's mask over a wider weight, proven to give the weights that it gave."""
    whole = np.ones(mask_shape(narrow.shape, pack.granularity), np.float32)
    packed = pack.masks.get(layer) or pack_mask(whole, 0)
    shape = mask_shape(wide.shape, pack.granularity)
    wider = packed if packed.shape == shape else padded_mask(packed, shape)
    before = narrow * broadcast_mask(unpack_mask(packed), narrow.shape, pack.granularity)
    after = (wide * broadcast_mask(unpack_mask(wider), wide.shape, pack.granularity))[tuple(map(slice, narrow.shape))]
    if not np.array_equal(before, after):
        raise _changes(pack, f"masked weights of '{layer}' are others")
    return wider


def _changes(pack: TaskPack, what: str) -> UserError:
    return UserError(
        f"Over the other backbone task '{pack.task}' would change: {what}. Nothing is replaced; give another bundle, "
        "or weights that differ only where no task of the bundle uses them."
    )
