"""The logits of an artifact's tasks, computed on the emulated board."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from board_processes import EMULATED_PYTHON

from ksm_hw.toolchains.targets import CompileTarget

Images = npt.NDArray[np.float32]


def logits_on_a_board(
    artifact: Path, target: CompileTarget, images: Mapping[str, Images], folder: Path, core: str | None = None
) -> Mapping[str, Images]:
    """The logits, by task, of images by task.

    Args:
        artifact: compiled for the target.
        target: of arm64.
        images: float32 [N, 3, H, W].
        folder: for files on the way.
        core: the board's, by QEMU's name; None is the target's.
    """
    np.savez(folder / "images.npz", **images)  # type: ignore[arg-type]
    program = Path(__file__).with_name("logits_on_a_board.py")
    files = (artifact, folder / "images.npz", folder / "logits.npz")
    environment = {**os.environ, "QEMU_CPU": core or str(target.tvm["mcpu"])}
    subprocess.run([EMULATED_PYTHON, program, *files], check=True, env=environment)
    computed: Mapping[str, Images] = np.load(folder / "logits.npz")
    return computed
