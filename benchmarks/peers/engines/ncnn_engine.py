"""ncnn."""

from pathlib import Path

import ncnn
import numpy as np
import numpy.typing as npt

from peers.serve import Run


def version() -> str:
    """Its release."""
    return str(ncnn.__version__)


def load(folder: Path, threads: int, variant: str) -> Run:
    """A net in float32, with the layouts and the light mode that are the default."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(folder / "network.ncnn.param")) or net.load_model(str(folder / "network.ncnn.bin")):
        raise RuntimeError("ncnn cannot read its files")

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image[0]))
            _, logits = extractor.extract("out0")
            return np.array(logits)[None]

    return run
