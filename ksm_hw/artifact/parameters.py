"""The parameters of an artifact's functions: what compiler and runtime agree on.

A function takes, by these names and in the order of the manifest's entry:

    a name of the network's state dict    the backbone's tensor, or the task's own (norms, biases)
    head/weight, head/bias                the classifier, whatever the network calls it
    mask/<layer>/<part>                   of each masked layer, its parts in the order of `MaskPart`:

        bits         uint8 [⌈n/8⌉]              the binary mask of n values, first value in the highest bit
        scale        float32 or uint8 [zeros]   soft values q where the bit is 0, in order, or their codes; at least 8
        row_start    int32 [O]                  zeros before each output channel
        scale_range  float32 [2]                (low, step): the soft value is low + q·step

    quantisation/<tensor>                 of int8, float32 [2]: scale and zero point of a tensor of the network
    table/<function>/<tensor>:<result>    of int8, uint8 [256]: what an activation makes of each value of a tensor

The passes of both IRs make their functions so by themselves; tests hold what they make to what this module gives.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.soft_mask import PackedMask, binary_mask, padded, soft_codes, soft_values
from ksm_hw.masks.task_pack import HEAD_BIAS, TaskPack
from ksm_hw.quantising.activations import ActivationName
from ksm_hw.quantising.scheme import Quantisation, lookup_table, quantisation_of

MaskPart = Literal["bits", "scale", "row_start", "scale_range"]

HEAD_WEIGHT = "head/weight"
_QUANTISATION, _TABLE = "quantisation/", "table/"

# What compiled functions may read of `scale` at once; zeros stand behind fewer. `compiler/relax.py` holds them to it.
FEWEST_SOFT_VALUES = 8


def task_parameters(
    names: Iterable[str], pack: TaskPack, backbone: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> list[npt.NDArray[np.generic]]:
    """The arrays of a task, in the order of the names.

    Args:
        names: of the parameters.
        pack: the task.
        backbone: the tensors that tasks share; those that the task has of its own come from the pack.
        classes: outputs of the compiled head; a task with fewer gets zeros behind its own.
    """
    names = list(names)
    if any(name.startswith(_QUANTISATION) for name in names):
        pack = pack.for_int8
    tensors = {**backbone, **pack.own_tensors}
    return [_parameter(name, pack, tensors, classes) for name in names]


def mask_part_of(name: str) -> tuple[str, MaskPart] | None:
    """The layer and the part of its mask that a parameter's name says; None for a parameter of no mask.

    Raises:
        ValueError: masks have no such part.
    """
    if not name.startswith("mask/"):
        return None
    _, layer, part = name.split("/")
    if part not in get_args(MaskPart):
        raise ValueError(f"masks have no part '{part}', which the parameter {name} names")
    return layer, cast(MaskPart, part)


def is_shared(name: str, pack: TaskPack) -> bool:
    """Whether a parameter is the backbone's, the same for all tasks."""
    of_task = name in (HEAD_WEIGHT, HEAD_BIAS) or pack.owns(name)
    return not of_task and not name.startswith((_QUANTISATION, _TABLE)) and mask_part_of(name) is None


def _parameter(
    name: str, pack: TaskPack, tensors: Mapping[str, npt.NDArray[np.float32]], classes: int
) -> npt.NDArray[np.generic]:
    if name.startswith(_QUANTISATION):
        found = _quantisation(name.removeprefix(_QUANTISATION), pack)
        return np.array([found.scale, found.zero_point], np.float32)
    if name.startswith(_TABLE):
        function, _, tensors_of_it = name.removeprefix(_TABLE).partition("/")
        data, into = (_quantisation(tensor, pack) for tensor in tensors_of_it.split(":"))
        return lookup_table(cast(ActivationName, function), data, into)
    if (masked := mask_part_of(name)) is not None:
        layer, part = masked
        return _mask_part(pack.masks[layer], part)
    if name in (HEAD_WEIGHT, HEAD_BIAS):
        own = pack.head_weight if name == HEAD_WEIGHT else pack.head_bias
        return padded(own, (classes, *own.shape[1:]))
    return tensors[name]


def _quantisation(tensor: str, pack: TaskPack) -> Quantisation:
    if pack.calibration is None or tensor not in pack.calibration.ranges:
        raise UserError(
            f"Task '{pack.task}' has no range of the tensor '{tensor}', which the artifact was compiled for."
        )
    return quantisation_of(*pack.calibration.ranges[tensor])


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
