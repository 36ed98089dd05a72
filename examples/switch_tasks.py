"""Switches an artifact through its tasks and classifies the real images that it carries of each.

python examples/switch_tasks.py artifacts/demo
"""

import argparse
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import load_bundle, sample_images
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.runtime.session import Session


def main(artifact: Path) -> None:
    """Prints how long each switch took, and what the images are."""
    session = Session.load(artifact)
    bundle = load_bundle(artifact)
    for task in session.tasks:
        seconds = session.switch(task)
        description = session.descriptions[task]
        print(f"\n{task}: {f'switched in {seconds * 1e3:.1f} ms' if seconds else 'ready when loaded'}")
        files = sample_images(bundle, task)
        logits = session.run_all(preprocess_batch([read_image(file) for file in files], description.preprocessing))
        for file, row in zip(files, logits, strict=True):
            print(f"  {file.stem:<28} is a {description.classes[row.argmax()]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Switches an artifact through its tasks.")
    parser.add_argument("artifact", type=Path, help="folder that `ksm-hw compile` wrote")
    try:
        main(parser.parse_args().artifact)
    except UserError as error:
        parser.error(str(error))
