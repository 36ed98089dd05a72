"""A backbone that is replaced by another, of the same network with other or wider weights, under tasks learned over it.

PackNet and CPG change weights that no task uses yet, and CPG makes layers wider. A task is carried over only where its
masked weights are bit for bit what they were. In a wider network it has the first channels of each layer: its masks are
0 elsewhere, and so is what its BatchNorms and biases give there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.mask_format import mask_shape
from ksm_hw.masks.soft_mask import PackedMask, broadcast_mask, fewest_bits, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack

Tensors = Mapping[str, npt.NDArray[np.float32]]


def padded(array: npt.NDArray[Any], shape: tuple[int, ...], value: float = 0) -> npt.NDArray[Any]:
    """An array in the first places of a larger one, which holds a value elsewhere; itself where it is no smaller."""
    if array.shape == shape:
        return array
    wide = np.full(shape, value, array.dtype)
    wide[tuple(map(slice, array.shape))] = array
    return wide


def padded_tensor(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A BatchNorm's tensor, a bias or slopes for more channels: those give 0."""
    return padded(array, shape, 1 if name.endswith("running_var") else 0)


def carried_over(pack: TaskPack, old: Tensors, new: Tensors, sha256: str) -> TaskPack:
    """The task over another backbone, where it computes what it did.

    Args:
        pack: the task.
        old, new: the tensors that tasks share, of the backbone that it was learned over and of the other.
        sha256: of the other.

    Raises:
        UserError: one of its weights would change.
    """
    if missing := sorted(old.keys() - new.keys()):
        raise _changes(pack, f"'{missing[0]}' is not there")
    masks: dict[str, PackedMask] = {}
    own: dict[str, npt.NDArray[np.float32]] = {}
    for name, wide in new.items():
        layer, narrow = name.removesuffix(".weight"), old.get(name)
        if narrow is None or narrow.ndim != wide.ndim or any(map(int.__gt__, narrow.shape, wide.shape)):
            raise _changes(pack, f"'{name}' has shape {list(wide.shape)}")
        if wide.ndim == 1:
            mine = pack.own_tensors.get(name, narrow)
            if name in pack.own_tensors or not np.array_equal(mine, wide):
                own[name] = padded_tensor(name, mine, wide.shape)
        elif layer in pack.masks or narrow.shape != wide.shape:
            masks[layer] = _carried_mask(pack, layer, narrow, wide)
        elif not np.array_equal(narrow, wide):
            raise _changes(pack, f"'{name}', which it uses without a mask, is another")
    norms = {name for name in own if f"{name.rpartition('.')[0]}.running_mean" in new}
    return dataclasses.replace(
        pack,
        backbone_sha256=sha256,
        masks=masks,
        batch_norms={name: array for name, array in own.items() if name in norms},
        parameters={name: array for name, array in own.items() if name not in norms},
    )


def _carried_mask(
    pack: TaskPack, layer: str, narrow: npt.NDArray[np.float32], wide: npt.NDArray[np.float32]
) -> PackedMask:
    """A layer's mask over a wider weight, proven to give the weights that it gave."""
    packed = pack.masks.get(layer)
    whole = np.ones(mask_shape(narrow.shape, pack.granularity), np.float32)
    soft = whole if packed is None else unpack_mask(packed)
    wider = padded(soft, mask_shape(wide.shape, pack.granularity))
    before = narrow * broadcast_mask(soft, narrow.shape, pack.granularity)
    after = (wide * broadcast_mask(wider, wide.shape, pack.granularity))[tuple(map(slice, narrow.shape))]
    if not np.array_equal(before, after):
        raise _changes(pack, f"masked weights of '{layer}' are others")
    return packed if packed is not None and wider is soft else pack_mask(wider, fewest_bits(wider))


def _changes(pack: TaskPack, what: str) -> UserError:
    return UserError(
        f"Over the other backbone task '{pack.task}' would change: {what}. Nothing is replaced; give another bundle, "
        "or weights that differ only where no task of the bundle uses them."
    )
