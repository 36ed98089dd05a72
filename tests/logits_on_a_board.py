"""Logits of an artifact's tasks where there is TVM's runtime alone: a program, `ARTIFACT IMAGES.npy LOGITS.npz`."""

import sys

import numpy as np

from ksm_hw.runtime.session import Session


def main() -> None:
    """The program."""
    artifact, images, logits = sys.argv[1:]
    session = Session.load(artifact)
    found = {}
    for task in session.manifest.tasks:
        session.switch(task)
        found[task] = session.run_all(np.load(images))
    np.savez(logits, **found)


if __name__ == "__main__":
    main()
