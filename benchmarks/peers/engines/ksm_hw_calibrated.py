"""The bundle with ranges and corrected biases for int8, as `ksm-hw calibrate` makes them when nothing is asked for."""

import dataclasses
from pathlib import Path

import numpy as np

from ksm_hw.files.staging import changed_folder, files_in, staged_files
from ksm_hw.masks.bundle import load_bundle, save_bundle
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.observers import DEFAULT_CORRECTION, DEFAULT_OBSERVER

_BATCH = 25  # Images at once, between the layers of which all tensors of the network are held.


def convert(folder: Path) -> None:
    """Writes `bundle-int8` beside `bundle`."""
    bundle, calibrated = load_bundle(folder.parent / "bundle"), folder.parent / "bundle-int8"
    pack, images = bundle.packs[folder.name], np.load(folder / "calibration.npy")
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    found = calibrate(bundle, pack, batches, DEFAULT_OBSERVER, correction=DEFAULT_CORRECTION)
    packs = {pack.task: dataclasses.replace(pack, calibration=found)}
    calibrated.mkdir(exist_ok=True)
    with changed_folder(calibrated), staged_files(calibrated, "bundle.json", files_in(calibrated)) as temporary:
        save_bundle(dataclasses.replace(bundle, packs=packs), temporary)
