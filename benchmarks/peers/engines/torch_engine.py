"""PyTorch, eager and compiled."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.masks.bundle import load_bundle
from ksm_hw.models.task_module import task_module
from peers.serve import Run


def version() -> str:
    """Its release."""
    return str(torch.__version__)


def load(folder: Path, threads: int, variant: str) -> Run:
    """The module as it is (`eager`), or compiled."""
    torch.set_num_threads(threads)
    bundle = load_bundle(folder.parent / "bundle")
    module = task_module(bundle, bundle.packs[folder.name])
    function = torch.compile(module) if variant == "compiled" else module

    # Not inference mode: there torch.compile does not freeze the weights.
    @torch.no_grad()
    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = function(torch.from_numpy(image)).numpy()
        return logits

    return run
