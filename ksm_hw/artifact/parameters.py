"""The arrays that a compiled function takes for a task, by the names that FoldTaskMask gave its parameters."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from ksm_hw.masks.soft_mask import PackedMask, binary_mask, soft_codes, soft_values
from ksm_hw.masks.task_pack import TaskPack

# The names of the head's parameters, whatever the network calls them.
HEAD_WEIGHT, HEAD_BIAS = "head/weight", "head/bias"

FEWEST_SOFT_VALUES = 8  # What the compiled functions read at once; zeros stand behind fewer.


def task_parameters(
    names: Iterable[str], pack: TaskPack, backbone: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> list[npt.NDArray[np.generic]]:
    """The arrays of a task, in the order of the names.

    Args:
        names: `mask/<layer>/bits|scale|row_start|scale_range`, `head/weight`, `head/bias`, or a tensor of the network.
        pack: the task.
        backbone: the tensors that tasks share; a BatchNorm that the task learned comes from the pack.
        classes: outputs of the compiled head; a task with fewer gets zeros behind its own.
    """
    return [_parameter(name, pack, backbone, classes) for name in names]


def is_shared(name: str, pack: TaskPack) -> bool:
    """Whether a parameter is the backbone's, the same for all tasks."""
    return not name.startswith(("mask/", "head/")) and name not in pack.batch_norms


def _parameter(
    name: str, pack: TaskPack, backbone: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> npt.NDArray[np.generic]:
    if name.startswith("mask/"):
        _, layer, part = name.split("/")
        return _mask_part(pack.masks[layer], part)
    if name.startswith("head/"):
        own = pack.head_weight if name == HEAD_WEIGHT else pack.head_bias
        padded = np.zeros((classes, *own.shape[1:]), np.float32)
        padded[: len(own)] = own
        return padded
    return pack.batch_norms[name] if name in pack.batch_norms else backbone[name]


def _mask_part(mask: PackedMask, part: str) -> npt.NDArray[np.generic]:
    match part:
        case "bits":
            return mask.bits
        case "scale":
            values = soft_codes(mask) if mask.coded else soft_values(mask)
            return np.pad(values, (0, max(0, FEWEST_SOFT_VALUES - len(values))))
        case "scale_range":
            return np.array(mask.scale_range if mask.coded else (0, 1), np.float32)
        case _:
            zeros = (~binary_mask(mask)).reshape(mask.shape[0], -1).sum(axis=1)
            return (np.cumsum(zeros) - zeros).astype(np.int32)
