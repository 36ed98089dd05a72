"""An integer model of a quantised task: the arithmetic of `scheme` in its plainest form, for code to equal bit for bit.

Written for clarity and apart from the compiler: it begins with the bundle and the ranges, and shares nothing with the
passes but the statement of the arithmetic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.quantising.float_model import Folded, convolved
from ksm_hw.quantising.folded_weights import folded_weights
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
    Rearrangement,
    WindowMean,
)
from ksm_hw.quantising.ranges import task_ranges
from ksm_hw.quantising.scheme import (
    LARGEST,
    LARGEST_WEIGHT,
    Quantisation,
    QuantisedLayer,
    addition_factors,
    clamp_bounds,
    lookup_table,
    mean_multiplier,
    product_multiplier,
    quantisation_of,
    quantise,
    quantise_layer,
    requantise,
    rescaling_multiplier,
)

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class IntegerModel:
    """A task in integers.

    Attributes:
        network: its operators.
        quantisations: of each tensor but the logits, by its name.
        layers: the quantised weights and biases, by the layers' paths.
    """

    network: Network
    quantisations: Mapping[str, Quantisation]
    layers: Mapping[str, QuantisedLayer]

    @torch.inference_mode()
    def results(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Every tensor, uint8 by its name; the logits float32 [N, classes].

        Args:
            images: float32 [N, 3, H, W], preprocessed.
        """
        known: dict[str, npt.NDArray[Any]] = {INPUT: quantise(images, self.quantisations[INPUT])}
        for operator in self.network.operators:
            known[operator.result] = self._computed(operator, known)
        return known

    def logits(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits, float32 [N, classes]."""
        return self.results(images)[self.network.logits]

    def _computed(self, operator: Operator, known: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        match operator:
            case Convolution():
                return self._convolution(operator, known[operator.data])
            case Addition():
                return self._addition(operator, known[operator.left], known[operator.right])
            case Activation():
                of_data, into = self.quantisations[operator.data], self.quantisations[operator.result]
                return lookup_table(operator.function, of_data, into)[known[operator.data]]
            case Product():
                return self._product(operator, known[operator.left], known[operator.right])
            case Mean():
                return self._mean(operator, known[operator.data])
            case WindowMean():
                return self._window_mean(operator, known[operator.data])
            case Concatenation():
                return self._concatenation(operator, known)
            case Rearrangement():
                # Pooling's maximum is not there for integers in PyTorch; float32 holds them all.
                values = torch.from_numpy(known[operator.data].astype(np.float32))
                return operator.function(values).numpy().astype(np.uint8)

    def _convolution(self, operator: Convolution, data: UInt8Array) -> npt.NDArray[Any]:
        layer = self.layers[operator.layer]
        accumulated = sums(operator, data, self.quantisations[operator.data].zero_point, layer)
        scale = layer.scale.reshape(-1, *[1] * (accumulated.ndim - 2))
        if operator.result == self.network.logits:
            return accumulated.astype(np.float32) * scale
        into = self.quantisations[operator.result]
        return requantise(accumulated, scale / np.float32(into.scale), into, clamp_bounds(*operator.clamp, into))

    def _addition(self, operator: Addition, left: UInt8Array, right: UInt8Array) -> UInt8Array:
        of_left, of_right, into = (
            self.quantisations[name] for name in (operator.left, operator.right, operator.result)
        )
        factor, other, multiplier = addition_factors(of_left, of_right, into)
        accumulated = _centred(left, of_left) * np.int32(factor) + _centred(right, of_right) * np.int32(other)
        return requantise(accumulated, multiplier, into, clamp_bounds(*operator.clamp, into))

    def _product(self, operator: Product, left: UInt8Array, right: UInt8Array) -> UInt8Array:
        of_left, of_right, into = (
            self.quantisations[name] for name in (operator.left, operator.right, operator.result)
        )
        product = _centred(left, of_left) * _centred(right, of_right)
        return requantise(product, product_multiplier(of_left, of_right, into), into)

    def _mean(self, operator: Mean, data: UInt8Array) -> UInt8Array:
        of_data, into = self.quantisations[operator.data], self.quantisations[operator.result]
        accumulated = _centred(data, of_data).sum((2, 3), dtype=np.int32, keepdims=operator.keeps)
        return requantise(accumulated, mean_multiplier(of_data, data[0, 0].size, into), into)

    def _window_mean(self, operator: WindowMean, data: UInt8Array) -> UInt8Array:
        of_data, into = self.quantisations[operator.data], self.quantisations[operator.result]
        windows = np.lib.stride_tricks.sliding_window_view(_centred(data, of_data), operator.window, (2, 3))
        down, across = operator.strides
        accumulated = windows[:, :, ::down, ::across].sum((4, 5), dtype=np.int32)
        return requantise(accumulated, mean_multiplier(of_data, math.prod(operator.window), into), into)

    def _concatenation(self, operator: Concatenation, known: Mapping[str, UInt8Array]) -> UInt8Array:
        into = self.quantisations[operator.result]
        parts = []
        for name in operator.parts:
            of_part = self.quantisations[name]
            parts.append(requantise(_centred(known[name], of_part), rescaling_multiplier(of_part, into), into))
        return np.concatenate(parts, 1)


def integer_model(network: Network, bundle: Bundle, pack: TaskPack) -> IntegerModel:
    """The integer model of a task.

    Raises:
        UserError: the task's ranges are missing, damaged, or of another network.
    """
    ranges = task_ranges(network, pack)
    return quantised_model(network, folded_weights(network, bundle, pack.for_int8), ranges)


def quantised_model(network: Network, folded: Folded, ranges: Mapping[str, tuple[float, float]]) -> IntegerModel:
    """The integer model of a network by its folded weights and the ranges of its tensors."""
    own = {name: quantisation_of(*ranges[name]) for name in network.ranged_tensors()}
    quantisations = {name: own[source] for name, source in network.quantised_as().items()}
    layers = {one.layer: quantise_layer(*folded[one.layer], quantisations[one.data]) for one in network.convolutions}
    return IntegerModel(network, quantisations, layers)


def sums(operator: Convolution, data: UInt8Array, zero_point: int, layer: QuantisedLayer) -> npt.NDArray[np.int32]:
    """`Σ (q - zero_point) · w + bias`, exact, as int32; what is padded is 0.0, that is the zero point."""
    # PyTorch has no convolution of integers. Sums of so few products that float32 holds each of them are exact in it,
    # in whichever order it adds; those of a layer are added up as integers.
    products = LARGEST * LARGEST_WEIGHT * layer.weight[0, 0].size
    channels = data.shape[1] if operator.groups > 1 else max(1, 2**24 // products)
    dtype = torch.float32 if products * layer.weight.shape[1] <= 2**24 or operator.groups == 1 else torch.float64
    centred = torch.from_numpy(data).to(dtype) - zero_point
    weight = torch.from_numpy(layer.weight).to(dtype)
    parts = zip(centred.split(channels, 1), weight.split(channels, 1), strict=True)
    total = sum(convolved(operator, *part).to(torch.int32).numpy() for part in parts)
    return np.asarray(total + layer.bias.reshape(-1, *[1] * (data.ndim - 2)), np.int32)


def _centred(data: UInt8Array, of: Quantisation) -> npt.NDArray[np.int32]:
    return data.astype(np.int32) - np.int32(of.zero_point)
