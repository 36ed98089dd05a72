"""A network in training that computes what its integer model will, by operations that learn (`straight_through`).

BatchNorms are folded with the statistics that they have, as they are at inference (Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference", arXiv 1806.08342: statistics are frozen while weights learn to be
rounded), and dropout rests.
"""

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.masks.calibration import Range
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
from ksm_hw.quantising.scheme import (
    addition_factors,
    clamp_bounds,
    mean_multiplier,
    product_multiplier,
    quantisation_of,
    rescaling_multiplier,
)
from ksm_hw.quantising.straight_through import (
    exact_sums,
    looked_up,
    per_channel,
    quantised_images,
    quantised_layer,
    requantised,
)

Float32Array = npt.NDArray[np.float32]
_Tensors = Mapping[str, torch.Tensor]


class RoundedNetwork(nn.Module):
    """Computes in float32 what int8 will, of the weights that another network holds and goes on to learn.

    Attributes:
        learned: the network that holds them.
        operators: of the same network.
        quantisations: of each tensor but the logits, by its name.
    """

    def __init__(self, learned: nn.Module, operators: Network, ranges: Mapping[str, Range]) -> None:
        super().__init__()
        self.learned, self.operators = learned, operators
        own = {name: quantisation_of(*ranges[name]) for name in operators.ranged_tensors()}
        self.quantisations = {name: own[source] for name, source in operators.quantised_as().items()}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, classes] of images float32 [N, 3, H, W]."""
        return self.results(images)[self.operators.logits]

    def results(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor by its name, integers less their zero points; the logits are real numbers."""
        known = {INPUT: quantised_images(images, self.quantisations[INPUT])}
        for operator in self.operators.operators:
            known[operator.result] = self._computed(operator, known)
        return known

    def _computed(self, operator: Operator, known: _Tensors) -> torch.Tensor:
        match operator:
            case Convolution():
                return self._convolution(operator, known[operator.data])
            case Addition():
                return self._addition(operator, known[operator.left], known[operator.right])
            case Activation():
                of_data, into = self.quantisations[operator.data], self.quantisations[operator.result]
                return looked_up(operator.function, known[operator.data], of_data, into)
            case Product():
                left, right, into = (
                    self.quantisations[name] for name in (operator.left, operator.right, operator.result)
                )
                multiplier = float(product_multiplier(left, right, into))
                return requantised(known[operator.left] * known[operator.right], multiplier, into)
            case Mean():
                data = known[operator.data]
                total = data.sum((2, 3), keepdim=operator.keeps, dtype=torch.float64).float()
                return self._mean(operator, total, data[0, 0].numel())
            case WindowMean():
                total = nn.functional.avg_pool2d(
                    known[operator.data], operator.window, operator.strides, divisor_override=1
                )
                return self._mean(operator, total, math.prod(operator.window))
            case Concatenation():
                return self._concatenation(operator, known)
            case _:
                return operator.function(known[operator.data])

    def _convolution(self, operator: Convolution, data: torch.Tensor) -> torch.Tensor:
        of_data = self.quantisations[operator.data]
        layer = quantised_layer(*_folded(operator, self.learned), of_data)
        # The bias may be larger than what float32 adds up exactly: it comes last, and the whole is rounded once.
        sums = exact_sums(operator, data, layer.weight, of_data.zero_point)
        sums = (sums + per_channel(layer.bias, sums, 1)).float()
        if operator.result == self.operators.logits:
            return sums * per_channel(layer.scale, sums, 1)
        into = self.quantisations[operator.result]
        multiplier = per_channel(layer.scale / layer.scale.new_tensor(into.scale), sums, 1)
        return requantised(sums, multiplier, into, clamp_bounds(*operator.clamp, into))

    def _addition(self, operator: Addition, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        of_left, of_right, into = (
            self.quantisations[name] for name in (operator.left, operator.right, operator.result)
        )
        factor, other, multiplier = addition_factors(of_left, of_right, into)
        bounds = clamp_bounds(*operator.clamp, into)
        return requantised(left * factor + right * other, float(multiplier), into, bounds)

    def _mean(self, operator: Mean | WindowMean, total: torch.Tensor, values: int) -> torch.Tensor:
        data, into = self.quantisations[operator.data], self.quantisations[operator.result]
        return requantised(total, float(mean_multiplier(data, values, into)), into)

    def _concatenation(self, operator: Concatenation, known: _Tensors) -> torch.Tensor:
        into = self.quantisations[operator.result]
        multipliers = [float(rescaling_multiplier(self.quantisations[name], into)) for name in operator.parts]
        parts = zip(operator.parts, multipliers, strict=True)
        return torch.cat([requantised(known[name], multiplier, into) for name, multiplier in parts], 1)


@torch.no_grad()
def learned_weights(operators: Network, learned: nn.Module) -> dict[str, tuple[Float32Array, Float32Array]]:
    """The weight and bias of every layer by its path, as `folded_weights` gives them once they are a task's."""
    folded = {one.layer: _folded(one, learned) for one in operators.convolutions}
    return {layer: (weight.cpu().numpy(), bias.cpu().numpy()) for layer, (weight, bias) in folded.items()}


def _folded(operator: Convolution, learned: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's weight and bias with its mask and BatchNorm folded in, by the operations of `folded_weights`."""
    norm = None if operator.batch_norm is None else learned.get_submodule(operator.batch_norm)
    if operator.layer == operator.batch_norm:
        like = cast(torch.Tensor, cast(nn.Module, norm).weight)
        weight, bias = like.new_ones(operator.groups, 1, 1, 1), like.new_zeros(operator.groups)
    else:
        layer = learned.get_submodule(operator.layer)
        weight = cast(torch.Tensor, layer.weight)
        bias = cast(torch.Tensor, layer.bias) if operator.has_bias else weight.new_zeros(len(weight))
    if norm is None:
        return weight, bias
    gamma, beta, mean, variance = (
        cast(torch.Tensor, getattr(norm, name)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    # By way of float64, whose root becomes the nearest float32: PyTorch's own is off by a bit at times.
    scale = gamma / torch.sqrt((variance + operator.epsilon).double()).float()
    shift = beta + (bias - mean) * scale if operator.has_bias else beta - mean * scale
    return weight * per_channel(scale, weight), shift
