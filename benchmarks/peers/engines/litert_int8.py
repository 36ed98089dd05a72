"""`network.int8.tflite`: LiteRT's quantiser (ai-edge-quantizer), with static ranges and weights for each channel.

Image and logits stay float32, as those of the other engines.
"""

from pathlib import Path

import numpy as np
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import TFLOperationName


def convert(folder: Path) -> None:
    """Writes it, from the float32 model of `litert_engine`."""
    made = quantizer.Quantizer(str(folder / "network.tflite"), recipe.static_wi8_ai8())
    for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        made.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    images = np.load(folder / "calibration.npy")
    (signature,), name = _signature(folder / "network.tflite")
    ranges = made.calibrate({signature: [{name: images[at : at + 1]} for at in range(len(images))]})
    made.quantize(ranges).export_model(str(folder / "network.int8.tflite"), overwrite=True)


def _signature(file: Path) -> tuple[list[str], str]:
    """The model's signatures, and the name of its one input."""
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(file)).get_signature_list()
    (inputs,) = (one["inputs"] for one in signatures.values())
    return list(signatures), inputs[0]
