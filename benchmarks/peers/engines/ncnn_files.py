"""`network.ncnn.param` and `network.ncnn.bin`, from the exported program, by ncnn's converter pnnx."""

import tempfile
from pathlib import Path

import numpy as np
import pnnx
import torch


def convert(folder: Path) -> None:
    """Writes ncnn's files, the weights in float32; pnnx halves them when it is not told otherwise."""
    image = torch.from_numpy(np.load(folder / "image.npy"))
    module = torch.export.load(folder / "network.pt2").module()
    traced = torch.jit.trace(module, image)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # pnnx writes seven files, of which two are wanted.
        script = Path(temporary) / "network.pt"
        traced.save(script)
        pnnx.convert(str(script), inputs=image, fp16=False)
        for part in ("param", "bin"):
            made = Path(temporary) / f"network.ncnn.{part}"
            if not made.exists():
                raise RuntimeError(f"pnnx wrote no {made.name}")
            made.replace(folder / made.name)
