"""`network.ncnn.param` and `network.ncnn.bin`, from the exported program, by ncnn's converter pnnx."""

from pathlib import Path

import numpy as np
import pnnx
import torch


def convert(folder: Path) -> None:
    """Writes ncnn's files, the weights in float32; pnnx halves them when it is not told otherwise."""
    image = torch.from_numpy(np.load(folder / "image.npy"))
    module = torch.export.load(folder / "network.pt2").module()
    traced = torch.jit.trace(module, image)
    script = folder / "network.pt"
    traced.save(script)
    names = {
        f"{kind}{part}": str(folder / f"network.{kind}.{part}")
        for kind in ("pnnx", "ncnn")
        for part in ("param", "bin", "py")
    }
    pnnx.convert(
        str(script),
        inputs=image,
        fp16=False,
        pnnxparam=names["pnnxparam"],
        pnnxbin=names["pnnxbin"],
        pnnxpy=names["pnnxpy"],
        pnnxonnx=str(folder / "network.pnnx.onnx"),
        ncnnparam=names["ncnnparam"],
        ncnnbin=names["ncnnbin"],
        ncnnpy=names["ncnnpy"],
    )
    if not (folder / "network.ncnn.bin").exists():
        raise RuntimeError("error: pnnx wrote no file")
