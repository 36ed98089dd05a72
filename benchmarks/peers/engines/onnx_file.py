"""`network.onnx`, which several engines read, from the exported program."""

from pathlib import Path

import torch


def convert(folder: Path) -> None:
    """Writes `network.onnx`."""
    program = torch.export.load(folder / "network.pt2")
    onnx = torch.onnx.export(program, dynamo=True, optimize=True, external_data=False)
    assert onnx is not None
    onnx.save(str(folder / "network.onnx"))
