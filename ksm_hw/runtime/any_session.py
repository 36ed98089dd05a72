"""What every session can do, wherever its artifact runs."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.artifact.manifest import Manifest
    from ksm_hw.masks.task_pack import TaskDescription


class AnySession(abc.ABC):
    """An artifact's session: in this process, in another one, or on a board.

    Attributes:
        manifest: what the artifact is.
        descriptions: what its tasks are, by name.
    """

    def __init__(self, manifest: "Manifest", descriptions: "Mapping[str, TaskDescription]", task: str = "") -> None:
        self.manifest = manifest
        self.descriptions = descriptions
        self._task = task

    @property
    def task(self) -> str:
        """Name of the current task."""
        return self._task

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks."""
        return list(self.descriptions)

    @abc.abstractmethod
    def switch(self, task: str) -> float:
        """Makes a task the current one and returns the seconds that it took, until the weights were there.

        Raises:
            UserError: there is no such task, or the device fails.
        """

    @abc.abstractmethod
    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs a batch and returns the logits, float32 [N, classes of the task].

        Args:
            images: float32 [N, 3, H, W], preprocessed, of the manifest's `input_shape`.

        Raises:
            UserError: the images have another shape or dtype or are not finite, or the device fails.
        """

    def check_images(self, images: npt.NDArray[np.float32]) -> None:
        """Checks what is about to run: compiled layers turn what is not a number into one (a ReLU makes it 0).

        Raises:
            UserError: the images have another shape or dtype, or are not finite.
        """
        expected = self.manifest.input_shape
        if not isinstance(images, np.ndarray) or images.shape != expected or images.dtype != np.float32:
            raise _other_images([*expected], images)
        # By the extremes, which take no memory; what is not a number is both of them.
        if not (np.isfinite(images.min()) and np.isfinite(images.max())):
            raise UserError(
                "The images hold numbers that are not finite (NaN or infinite). Preprocess them with the task's "
                "preprocessing, from pixels."
            )

    def run_all(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The current task's logits of any number of images, float32 [M, classes]; a last batch is filled with zeros.

        Raises:
            UserError: an image has another shape or dtype than the artifact's input, or the device fails.
        """
        batch, *one = self.manifest.input_shape
        if not isinstance(images, np.ndarray) or images.ndim != 4 or not len(images):
            raise _other_images(["M", *one], images)
        filled = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), np.float32)])
        logits = [self.run(filled[start : start + batch]) for start in range(0, len(filled), batch)]
        return np.concatenate(logits)[: len(images)]


def _other_images(expected: list[int | str], found: object) -> UserError:
    what = f"a {type(found).__name__}"
    if isinstance(found, np.ndarray):
        what = f"{found.dtype} {list(found.shape)}"
    shape = ", ".join(map(str, expected))
    return UserError(
        f"Expected images as a NumPy array, float32 [{shape}], found {what}. Preprocess them with the task's "
        "preprocessing, and compile with --batch for other batch sizes."
    )
