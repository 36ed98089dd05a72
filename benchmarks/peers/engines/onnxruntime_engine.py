"""ONNX Runtime."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from peers.serve import Run


def version() -> str:
    """Its release."""
    return str(onnxruntime.__version__)


def load(folder: Path, threads: int, variant: str) -> Run:
    """A session with all graph optimisations, which is the default."""
    network = "network.int8.onnx" if variant == "int8" else "network.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / network, options, providers=["CPUExecutionProvider"])
    (name,) = (tensor.name for tensor in session.get_inputs())

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        (logits,) = session.run(None, {name: image})
        return logits

    return run
