"""The ranges of a task's tensors, checked before they are used."""

import shlex
from collections.abc import Mapping

from ksm_hw.errors import UserError
from ksm_hw.masks.calibration import Range
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.quantising.network import Network
from ksm_hw.quantising.scheme import NARROWEST, WIDEST, is_range


def task_ranges(network: Network, pack: TaskPack) -> Mapping[str, Range]:
    """The range of every tensor that is quantised, by its name.

    Raises:
        UserError: the task was never calibrated, or over another backbone or at another image size; a range is missing,
            is no number, reversed, too narrow or wide, or does not hold 0.0, which every quantised tensor must hold.
    """
    found = pack.calibration
    if found is None:
        raise UserError(f"Task '{pack.task}' has no ranges, which int8 takes its scales from. {_remedy(pack)}")
    if found.backbone_sha256 != pack.backbone_sha256:
        raise UserError(
            f"The ranges of task '{pack.task}' were calibrated over a backbone with SHA-256 {found.backbone_sha256}, "
            f"and it is over one with {pack.backbone_sha256}. {_remedy(pack)}"
        )
    if found.image_size != pack.preprocessing.image_size:
        raise UserError(
            f"The ranges of task '{pack.task}' were calibrated on images of {found.image_size} pixels, and it takes "
            f"{pack.preprocessing.image_size}. {_remedy(pack)}"
        )
    for name in network.ranged_tensors():
        if name not in found.ranges:
            raise UserError(f"Task '{pack.task}' has no range of the tensor '{name}'. {_remedy(pack)}")
        low, high = found.ranges[name]
        if not is_range(low, high):
            raise UserError(
                f"Task '{pack.task}' has the range {low:g} … {high:g} of the tensor '{name}'; expected numbers, the "
                f"first at most 0, the second at least 0, {NARROWEST:.0e} to {WIDEST:.0e} apart. {_remedy(pack)}"
            )
    return found.ranges


def _remedy(pack: TaskPack) -> str:
    return f"Calibrate it: ksm-hw calibrate --task {shlex.quote(pack.task)} --bundle BUNDLE --data IMAGES"
