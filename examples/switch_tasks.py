"""Switches an artifact through its tasks and classifies the real images that it carries of each.

python examples/switch_tasks.py artifacts/demo
"""

import sys
from pathlib import Path

from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import load_bundle, sample_images
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.runtime.session import Session

artifact = Path(sys.argv[1])
session = Session.load(artifact)
bundle = load_bundle(artifact)
for task in session.tasks:
    seconds = session.switch(task)
    pack = session.packs[task]
    print(f"\n{task}: switched in {seconds * 1e3:.1f} ms")
    files = sample_images(bundle, task)
    logits = session.run_all(preprocess_batch([read_image(file) for file in files], pack.preprocessing))
    for file, row in zip(files, logits, strict=True):
        print(f"  {file.stem:<28} is a {pack.classes[row.argmax()]}")
