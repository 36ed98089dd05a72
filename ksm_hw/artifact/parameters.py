"""The parameters of an artifact's functions: what compiler and runtime agree on.

A function takes, by these names and in the order of the manifest's entry:

    a tensor of the network, by its name in the state dict: the backbone's weights, and BatchNorms
    head/weight, head/bias        the classifier's, whatever the network calls it
    mask/<layer>/<part>           of each masked layer: `tvm_passes.parameters`, which the passes make them by
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from ksm_hw.masks.soft_mask import PackedMask, binary_mask, soft_codes, soft_values
from ksm_hw.masks.task_pack import TaskPack
from tvm_passes.parameters import FEWEST_SOFT_VALUES, MaskPart, mask_part_of

HEAD_WEIGHT, HEAD_BIAS = "head/weight", "head/bias"


def task_parameters(
    names: Iterable[str], pack: TaskPack, backbone: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> list[npt.NDArray[np.generic]]:
    """The arrays of a task, in the order of the names.

    Args:
        names: of the parameters.
        pack: the task.
        backbone: the tensors that tasks share; a BatchNorm that the task learned comes from the pack.
        classes: outputs of the compiled head; a task with fewer gets zeros behind its own.
    """
    return [_parameter(name, pack, backbone, classes) for name in names]


def is_shared(name: str, pack: TaskPack) -> bool:
    """Whether a parameter is the backbone's, the same for all tasks."""
    return mask_part_of(name) is None and name not in (HEAD_WEIGHT, HEAD_BIAS) and name not in pack.batch_norms


def _parameter(
    name: str, pack: TaskPack, backbone: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> npt.NDArray[np.generic]:
    if (masked := mask_part_of(name)) is not None:
        layer, part = masked
        return _mask_part(pack.masks[layer], part)
    if name in (HEAD_WEIGHT, HEAD_BIAS):
        own = pack.head_weight if name == HEAD_WEIGHT else pack.head_bias
        padded = np.zeros((classes, *own.shape[1:]), own.dtype)
        padded[: len(own)] = own
        return padded
    return pack.batch_norms[name] if name in pack.batch_norms else backbone[name]


def _mask_part(mask: PackedMask, part: MaskPart) -> npt.NDArray[np.generic]:
    match part:
        case "bits":
            return mask.bits
        case "scale":
            values = soft_codes(mask) if mask.coded else soft_values(mask)
            return np.pad(values, (0, max(0, FEWEST_SOFT_VALUES - len(values))))
        case "row_start":
            zeros = (~binary_mask(mask)).reshape(mask.shape[0], -1).sum(axis=1)
            return (np.cumsum(zeros) - zeros).astype(np.int32)
        case "scale_range":
            return np.array(mask.scale_range if mask.coded else (0, 1), np.float32)
