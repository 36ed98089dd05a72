"""What calibration found out about a task: ranges of tensors, from which int8 takes scales, and biases for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
        biases: float32, what int8 takes in the place of tensors of the task or backbone, by the names that those have
            in the network's state dict, or `head/bias`.
    """

    observer: str
    images: int
    image_size: int
    backbone_sha256: str
    ranges: Mapping[str, Range] = field(default_factory=dict)
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
