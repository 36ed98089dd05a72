"""OpenVINO."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from peers.serve import Run


def version() -> str:
    """Its release."""
    return str(openvino.__version__).split("-")[0]


def load(folder: Path, threads: int, variant: str) -> Run:
    """A compiled model for latency; float32 is asked for where int8 is not, because newer CPUs would get bfloat16."""
    network = "network.int8.xml" if variant == "int8" else "network.onnx"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(folder / network, "CPU", options).create_infer_request()

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = request.infer([image], share_inputs=True)[0]
        return logits

    return run
