"""An artifact of Relay beside that of Relax."""

from pathlib import Path

import numpy as np

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import Bundle, sample_images
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.runtime.session import Session


def assert_same_as_relax(
    relay_artifact: Path, relax_artifact: Path, bundle: Bundle, board: BoardAddress | None = None
) -> None:
    """The logits of every task's samples agree to 1e-4 of the largest, and are not the same to the last bit."""
    session = Session.load(relax_artifact)
    with open_session(relay_artifact, board) as other:
        assert other.tasks == session.tasks
        for task in session.tasks:
            pack = bundle.packs[task]
            images = preprocess_batch([read_image(path) for path in sample_images(bundle, task)], pack.preprocessing)
            session.switch(task)
            other.switch(task)
            expected, found = session.run_all(images), other.run_all(images)
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert 0 < error <= 1e-4, f"{task}: {error}"
