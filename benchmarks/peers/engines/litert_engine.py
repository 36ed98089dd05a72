"""LiteRT (TensorFlow Lite) with its XNNPACK delegate: conversion from the exported program, and its runtime."""

from importlib.metadata import version as release
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peers.serve import Run


def convert(folder: Path) -> None:
    """Writes `network.tflite`."""
    import litert_torch
    import torch

    module = torch.export.load(folder / "network.pt2").module()
    litert_torch.convert(module, (torch.from_numpy(np.load(folder / "image.npy")),)).export(
        str(folder / "network.tflite")
    )


def version() -> str:
    """Its release."""
    return release("ai-edge-litert")


def load(folder: Path, threads: int, variant: str) -> Run:
    """An interpreter; XNNPACK is its default on CPUs."""
    from ai_edge_litert.interpreter import Interpreter

    network = "network.int8.tflite" if variant == "int8" else "network.tflite"
    interpreter = Interpreter(str(folder / network), num_threads=threads)
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        interpreter.set_tensor(entry["index"], image)
        interpreter.invoke()
        logits: npt.NDArray[np.float32] = interpreter.get_tensor(end["index"])
        return logits

    return run
