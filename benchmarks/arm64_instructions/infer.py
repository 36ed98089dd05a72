"""Runs on the emulated board: two inferences of an engine, the second between two calls of getppid.

    infer.py MODULE VARIANT FOLDER PATH...

MODULE is one of `peers/engines`, VARIANT and FOLDER are what its `load` takes, and each PATH is where Python looks for
packages first. The first inference does what is done once. Prints how far its logits are off.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np


def infer(module: str, variant: str, folder: Path) -> float:
    """The largest difference of the logits, by the largest of those that PyTorch makes."""
    from peers.serve import relative_error

    run = importlib.import_module(f"peers.engines.{module}").load(folder, 1, variant)
    image = np.load(folder / "image.npy")
    logits = run(image)
    os.getppid()
    run(image)
    os.getppid()
    return relative_error(logits, np.load(folder / "logits.npy"))


if __name__ == "__main__":
    sys.path[:0] = sys.argv[4:]
    print(infer(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
