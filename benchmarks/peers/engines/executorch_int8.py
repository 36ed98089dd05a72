"""`network.int8.pte`: ExecuTorch's quantiser for XNNPACK, with static ranges and weights for each channel."""

from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def convert(folder: Path) -> None:
    """Writes it."""
    images = torch.from_numpy(np.load(folder / "calibration.npy"))
    quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.load(folder / "network.pt2").module(), quantiser)
    for image in images.split(1):
        prepared(image)
    program = torch.export.export(convert_pt2e(prepared), (images[:1],))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "network.int8.pte").write_bytes(lowered.to_executorch().buffer)
