"""MNN: conversion from ONNX, and its runtime."""

import subprocess
from pathlib import Path

import MNN
import numpy as np
import numpy.typing as npt

from peers.serve import Run


def convert(folder: Path) -> None:
    """Writes `network.mnn` with the converter of MNN's own package."""
    source, target = folder / "network.onnx", folder / "network.mnn"
    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "ksm"]
    subprocess.run(command, check=True)


def version() -> str:
    """Its release."""
    return str(MNN.version())


def load(folder: Path, threads: int, variant: str) -> Run:
    """A session in float32."""
    interpreter = MNN.Interpreter(str(folder / "network.mnn"))
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    entry, end = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        given = MNN.Tensor(image.shape, MNN.Halide_Type_Float, image, MNN.Tensor_DimensionType_Caffe)
        entry.copyFrom(given)
        interpreter.runSession(session)
        shape = end.getShape()
        found = MNN.Tensor(shape, MNN.Halide_Type_Float, np.empty(shape, np.float32), MNN.Tensor_DimensionType_Caffe)
        end.copyToHostTensor(found)
        return np.array(found.getNumpyData(), np.float32).reshape(shape)

    return run
