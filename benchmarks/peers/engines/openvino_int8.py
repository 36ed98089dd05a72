"""`network.int8.xml`: OpenVINO's post-training quantisation, which is NNCF's."""

from pathlib import Path

import nncf
import numpy as np
import openvino


def convert(folder: Path) -> None:
    """Writes it, with what NNCF chooses for a convolutional network on a CPU."""
    images = np.load(folder / "calibration.npy")
    model = openvino.Core().read_model(folder / "network.onnx")
    singles = [images[at : at + 1] for at in range(len(images))]
    quantised = nncf.quantize(model, nncf.Dataset(singles), subset_size=len(images))
    openvino.save_model(quantised, folder / "network.int8.xml", compress_to_fp16=False)
