"""A task's folded network in float32, operator by operator: what quantisation is calibrated on and compared with."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.quantising.network import (
    INPUT,
    Activation,
    Addition,
    Concatenation,
    Convolution,
    Mean,
    Network,
    Operator,
    Product,
    WindowMean,
)

Float32Array = npt.NDArray[np.float32]
Folded = Mapping[str, tuple[Float32Array, Float32Array]]


@torch.inference_mode()
def float_results(network: Network, folded: Folded, images: Float32Array) -> dict[str, torch.Tensor]:
    """Every tensor of the network, the logits among them, by its name.

    Args:
        network: the operators.
        folded: `folded_weights`.
        images: float32 [N, 3, H, W].
    """
    known = {INPUT: torch.from_numpy(images)}
    for operator in network.operators:
        known[operator.result] = operator_result(operator, known, folded)
    return known


def operator_result(operator: Operator, known: Mapping[str, torch.Tensor], folded: Folded) -> torch.Tensor:
    """What an operator computes of tensors that are known by their names, float32."""
    match operator:
        case Convolution():
            weight, bias = (torch.from_numpy(np.ascontiguousarray(array)) for array in folded[operator.layer])
            return convolved(operator, known[operator.data], weight, bias).clamp(*operator.clamp)
        case Addition():
            return (known[operator.left] + known[operator.right]).clamp(*operator.clamp)
        case Activation():
            function: Callable[[torch.Tensor], torch.Tensor] = getattr(torch.nn.functional, operator.function)
            return function(known[operator.data])
        case Product():
            return known[operator.left] * known[operator.right]
        case Mean():
            return known[operator.data].mean((2, 3), keepdim=operator.keeps)
        case WindowMean():
            return torch.nn.functional.avg_pool2d(known[operator.data], operator.window, operator.strides)
        case Concatenation():
            return torch.cat([known[part] for part in operator.parts], 1)
        case _:
            return operator.function(known[operator.data])


def convolved(
    operator: Convolution, data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, fill: float = 0.0
) -> torch.Tensor:
    """The sums of products of a layer, in the type of data and weight; what is padded is `fill`."""
    if operator.dense:
        return torch.nn.functional.linear(data, weight, bias)
    top, left, bottom, right = operator.padding
    if any(operator.padding):
        data = torch.nn.functional.pad(data, (left, right, top, bottom), value=fill)
    return torch.nn.functional.conv2d(data, weight, bias, operator.strides, 0, operator.dilation, operator.groups)
