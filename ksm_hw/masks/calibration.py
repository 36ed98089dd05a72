"""What calibration found out about a task: the ranges of its network's tensors, from which int8 takes scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Range = tuple[float, float]  # The least and the largest value of a tensor.


@dataclass(frozen=True)
class Calibration:
    """The ranges of a task's tensors, and where they come from.

    Attributes:
        observer: how the ranges were chosen: a name of `ksm_hw.quantising.calibrate`.
        images: how many were looked at.
        image_size: their height and width in pixels.
        backbone_sha256: hash of the weights that the network had.
        ranges: by the tensors' names (`ksm_hw.quantising.network`); numbers that float32 holds.
    """

    observer: str
    images: int
    image_size: int
    backbone_sha256: str
    ranges: Mapping[str, Range] = field(default_factory=dict)
