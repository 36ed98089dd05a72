"""`network.int8.onnx`: ONNX Runtime's static quantisation, of the format with pairs of quantise and dequantise."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Images(CalibrationDataReader):  # type: ignore[misc]  # Its package has no types.
    """The images to calibrate on, one at a time."""

    def __init__(self, name: str, images: np.ndarray[Any, Any]) -> None:
        self._inputs = iter([{name: images[at : at + 1]} for at in range(len(images))])

    def get_next(self) -> dict[str, Any] | None:
        """The next image, None behind the last."""
        return next(self._inputs, None)


def convert(folder: Path) -> None:
    """Writes it: weights int8 for each channel, activations uint8 (VNNI's pair), ranges from least to largest value."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        prepared = Path(temporary) / "network.onnx"
        # Symbolic shapes are for transformers; the network has none.
        quant_pre_process(folder / "network.onnx", prepared, skip_symbolic_shape=True)
        (entry,) = onnx.load(prepared).graph.input
        quantize_static(
            prepared,
            folder / "network.int8.onnx",
            _Images(entry.name, np.load(folder / "calibration.npy")),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
