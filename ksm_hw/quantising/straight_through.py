"""The arithmetic of `scheme` as operations that learn: forward its integers, backward what real numbers would give.

A tensor is float32 and holds `q - zero_point`. Integers up to 2²⁴ are exact in it; sums that could be larger are added
up in parts (`exact_sums`), so that what comes forward is what integers give. Backward a rounding is the identity
(Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432), a clamp
lets through what rounds to one of its bounds or lies between them, and scales have no gradient. PyTorch's
`fake_quantize_per_channel_affine` multiplies weights by the reciprocal of a scale, where `scheme` divides, and so
rounds some of them to another integer.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional

from ksm_hw.quantising.activations import ActivationName
from ksm_hw.quantising.float_model import convolved
from ksm_hw.quantising.network import Convolution
from ksm_hw.quantising.scheme import (
    LARGEST,
    LARGEST_BIAS,
    LARGEST_WEIGHT,
    SMALLEST_WEIGHT_SCALE,
    Quantisation,
    inverse_scale,
    lookup_table,
)

_EXACT = 2**24  # Up to here float32 holds every integer.


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient


def straight_through(exact: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """The values of one tensor with the gradient of another of its shape."""
    return cast(torch.Tensor, _StraightThrough.apply(exact, smooth))


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Each value rounded, ties to even; the gradient is that of the identity."""
    return straight_through(torch.round(values.detach()), values)


def quantised_images(images: torch.Tensor, into: Quantisation) -> torch.Tensor:
    """What `scheme.quantise` gives, less the zero point."""
    steps = torch.round(images * float(inverse_scale(into)))
    return steps.clamp(-into.zero_point, LARGEST - into.zero_point)


@dataclass(frozen=True)
class RoundedLayer:
    """`scheme.QuantisedLayer` in float32: weight of the layer's shape, bias [O], scale [O] without a gradient."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor


def quantised_layer(weight: torch.Tensor, bias: torch.Tensor, data: Quantisation) -> RoundedLayer:
    """What `scheme.quantise_layer` gives.

    Args:
        weight: float32 [O, …], mask and BatchNorm folded in.
        bias: float32 [O].
        data: quantisation of what the layer reads.
    """
    with torch.no_grad():
        data_scale = weight.new_tensor(data.scale)  # Of a number, a GPU would take the reciprocal.
        of_weight = weight.abs().flatten(1).amax(1) / weight.new_tensor(LARGEST_WEIGHT)
        scale = torch.maximum(of_weight, bias.abs() / data_scale * (1 / LARGEST_BIAS))
        scale = torch.where(scale < SMALLEST_WEIGHT_SCALE, torch.ones_like(scale), scale)
        sums = data_scale * scale
    steps = rounded(weight / per_channel(scale, weight)).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return RoundedLayer(steps, rounded(bias / sums).clamp(-LARGEST_BIAS, LARGEST_BIAS), sums)


def exact_sums(operator: Convolution, data: torch.Tensor, weight: torch.Tensor, zero_point: int) -> torch.Tensor:
    """The sums of products of a layer, exact whatever its size: float32, or float64 where float32 might not hold them.

    Input channels are then cut into parts of which no sum exceeds 2²⁴ in whichever order it is added up, and the parts'
    sums are added in float64. A convolution in groups, of which no network that int8 knows has one so large, computes
    in float64 altogether. A plain sum of float32 is off by a step or two of millions.

    Args:
        operator: the layer.
        data: float32 [N, I, …], `q - zero_point`.
        weight: float32 [O, I / groups, …], integers.
        zero_point: of the data.
    """
    parts = _exact_parts(weight.detach(), max(zero_point, LARGEST - zero_point))
    if parts == 1:
        return convolved(operator, data, weight)
    if operator.groups > 1:
        return convolved(operator, data.double(), weight.double())
    of_parts = zip(data.chunk(parts, 1), weight.chunk(parts, 1), strict=True)
    return torch.stack([convolved(operator, *part).double() for part in of_parts]).sum(0)


def _exact_parts(weight: torch.Tensor, largest: int) -> int:
    """Into how many parts input channels are cut so that float32 holds each part's sums of data up to `largest`."""
    magnitudes = weight.abs().reshape(*weight.shape[:2], -1).sum(2)
    parts = 1
    while parts < magnitudes.shape[1] and _most(magnitudes, parts) * largest > _EXACT:
        parts *= 2
    return parts


def _most(magnitudes: torch.Tensor, parts: int) -> float:
    """The largest sum over a part's input channels, of [O, I]."""
    return max(float(part.sum(1).max()) for part in magnitudes.chunk(parts, 1))


def per_channel(values: torch.Tensor, like: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Values [O] in a shape that they broadcast in against a tensor whose axis they belong to."""
    return values.reshape(-1, *[1] * (like.ndim - axis - 1))


def requantised(
    sums: torch.Tensor, multiplier: torch.Tensor | float, into: Quantisation, bounds: tuple[int, int] = (0, LARGEST)
) -> torch.Tensor:
    """What `scheme.requantise` gives of sums, less the zero point.

    Args:
        sums: integers in float32.
        multiplier: float32, one or as many as broadcast against the sums.
        into: of the result.
        bounds: `scheme.clamp_bounds`.
    """
    low, high = bounds
    return rounded(sums * multiplier).clamp(low - into.zero_point, high - into.zero_point)


def looked_up(function: ActivationName, values: torch.Tensor, data: Quantisation, into: Quantisation) -> torch.Tensor:
    """What `scheme.lookup_table` has for each value, less the zero point; the gradient is that of the function."""
    table = torch.from_numpy(lookup_table(function, data, into)).to(values) - into.zero_point
    found = table[values.detach().to(torch.int64) + data.zero_point]
    smooth = getattr(functional, function)(values * data.scale) / into.scale
    return straight_through(found, smooth.clamp(-into.zero_point, LARGEST - into.zero_point))
