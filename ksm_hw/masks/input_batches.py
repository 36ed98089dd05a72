"""From any number of image files to batches of the network's input, in little memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksm_hw.images.decoding import read_image
from ksm_hw.images.stream import OnFailure, map_images, raise_failure
from ksm_hw.masks.preprocessing import Preprocessing, preprocess


def read_batches(
    files: Iterable[Path], preprocessing: Preprocessing, size: int, on_failure: OnFailure = raise_failure
) -> Iterator[tuple[list[Path], npt.NDArray[np.float32]]]:
    """Batches of at most `size` images in the order of the files: their files, and float32 [N, 3, H, W].

    A few files are read ahead in threads.

    Args:
        files: images.
        preprocessing: of the task.
        size: images a batch.
        on_failure: called with a file that cannot be read, which is left out. Without it the error is raised.

    Raises:
        UserError: an image cannot be read, and nothing else is to be done about it.
    """

    def read(file: Path) -> npt.NDArray[np.float32]:
        return preprocess(read_image(file), preprocessing)

    images = map_images(read, files, on_failure)
    while batch := list(islice(images, size)):
        yield [file for file, _ in batch], np.stack([array for _, array in batch])
