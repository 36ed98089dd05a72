"""ExecuTorch with its XNNPACK delegate: conversion from the exported program, and its runtime."""

from importlib.metadata import version as release
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from peers.serve import Run


def convert(folder: Path) -> None:
    """Writes `network.pte`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.load(folder / "network.pt2")
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "network.pte").write_bytes(lowered.to_executorch().buffer)


def version() -> str:
    """Its release."""
    return release("executorch")


def load(folder: Path, threads: int, variant: str) -> Run:
    """The program's method `forward`."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    network = "network.int8.pte" if variant == "int8" else "network.pte"
    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(folder / network)
    method = program.load_method("forward")

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = method.execute([torch.from_numpy(image)])[0].numpy()
        return logits

    run.keeps = program  # type: ignore[attr-defined]
    return run
