"""Logits of an artifact's tasks where there is TVM's runtime alone: a program, `ARTIFACT IMAGES.npz LOGITS.npz`.

Images and logits are by the tasks' names."""

import sys

import numpy as np

from ksm_hw.runtime.session import Session


def main() -> None:
    """The program."""
    artifact, images_file, logits = sys.argv[1:]
    images = np.load(images_file)
    session = Session.load(artifact)
    found = {}
    for task in session.manifest.tasks:
        session.switch(task)
        found[task] = session.run_all(images[task])
    np.savez(logits, **found)


if __name__ == "__main__":
    main()
