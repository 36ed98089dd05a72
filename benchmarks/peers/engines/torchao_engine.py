"""PyTorch in int8: torchao's quantiser for x86, and torch.compile, whose freezing fuses what it quantised."""

from importlib.metadata import version as release
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from peers.serve import Run


def convert(folder: Path) -> None:
    """Writes `network.int8.pt2`."""
    images = torch.from_numpy(np.load(folder / "calibration.npy"))
    quantiser = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.load(folder / "network.pt2").module(), quantiser)
    for image in images.split(1):
        prepared(image)
    torch.export.save(torch.export.export(convert_pt2e(prepared), (images[:1],)), folder / "network.int8.pt2")


def version() -> str:
    """Its release."""
    return release("torchao")


def load(folder: Path, threads: int, variant: str) -> Run:
    """The quantised program, compiled."""
    torch.set_num_threads(threads)
    function = torch.compile(torch.export.load(folder / "network.int8.pt2").module())

    # Not inference mode: there torch.compile does not freeze the weights.
    @torch.no_grad()
    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = function(torch.from_numpy(image)).numpy()
        return logits

    return run
