"""Bias correction: what rounding shifts the sums of a layer by, on real images, is taken out of its bias.

Rounding to nearest has no bias over many products. A layer of few products over even ground has one, of whole channels,
and every layer behind it passes it on (docs/quantisation.md). So each layer in turn, reading what the corrected ones
before it give, gets the bias with which the mean of each channel, over images and pixels, is that of float32.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.calibration import Range
from ksm_hw.masks.task_pack import HEAD_BIAS, TaskPack
from ksm_hw.quantising.float_model import Folded, operator_result
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import IntegerModel, quantised_model
from ksm_hw.quantising.network import INPUT, Convolution, Network
from ksm_hw.quantising.observers import BiasCorrection
from ksm_hw.quantising.scheme import Quantisation, dequantise, quantise

Float32Array = npt.NDArray[np.float32]


def corrected_biases(
    network: Network,
    bundle: Bundle,
    pack: TaskPack,
    ranges: Mapping[str, Range],
    images: Float32Array,
    correction: BiasCorrection,
) -> dict[str, Float32Array]:
    """The biases that int8 is to take, by the names of the tensors that it takes them in the place of.

    Args:
        network: of the task.
        bundle: has the backbone.
        pack: the task.
        ranges: of its tensors.
        images: float32 [N, 3, H, W], preprocessed as the task's; all tensors of a layer are held for all of them.
        correction: of which layers; what has no bias, and no BatchNorm either, stays as it is.
    """
    folded = folded_weights(network, bundle, pack)
    layers = {"none": [], "first": network.convolutions[:1], "all": network.convolutions}[correction]
    places = {one.layer: place for one in layers if (place := _bias_of(one, network)) is not None}
    shifts = _shifts(quantised_model(network, folded, ranges), folded, torch.from_numpy(images), places.keys())
    known = {**bundle.tensors, **pack.own_tensors, HEAD_BIAS: pack.head_bias}
    return {places[layer]: known[places[layer]] + shift for layer, shift in shifts.items()}


def _bias_of(layer: Convolution, network: Network) -> str | None:
    """The tensor that a shift of a layer's sums can be added to."""
    if layer.layer == network.logits:
        return HEAD_BIAS
    if layer.batch_norm is not None:
        return f"{layer.batch_norm}.bias"
    return f"{layer.layer}.bias" if layer.has_bias else None


@torch.inference_mode()
def _shifts(
    model: IntegerModel, folded: Folded, images: torch.Tensor, wanted: Collection[str]
) -> dict[str, Float32Array]:
    """Of each wanted layer, float32 [O], by how much its sums in float32 are above those of rounded numbers."""

    def rounded(tensor: torch.Tensor, of: Quantisation) -> torch.Tensor:
        return torch.from_numpy(dequantise(quantise(tensor.numpy(), of), of))

    real, quantised = {INPUT: images}, {INPUT: rounded(images, model.quantisations[INPUT])}
    shifts: dict[str, Float32Array] = {}
    for operator in model.network.operators:
        if len(shifts) == len(wanted):
            break
        if isinstance(operator, Convolution):
            free = dataclasses.replace(operator, clamp=(-math.inf, math.inf))
            expected = operator_result(free, real, folded)
            sums = operator_result(free, quantised, {operator.layer: _rounded_layer(model, folded, operator)})
            if operator.layer in wanted:
                shift = (expected - sums).mean((0, *range(2, sums.ndim)))
                shifts[operator.layer] = shift.numpy()
                sums = sums + shift.reshape(-1, *[1] * (sums.ndim - 2))
            real[operator.result] = expected.clamp(*operator.clamp)
            result = sums.clamp(*operator.clamp)
        else:
            real[operator.result] = operator_result(operator, real, folded)
            result = operator_result(operator, quantised, folded)
        if operator.result != model.network.logits:
            quantised[operator.result] = rounded(result, model.quantisations[operator.result])
    return shifts


def _rounded_layer(model: IntegerModel, folded: Folded, operator: Convolution) -> tuple[Float32Array, Float32Array]:
    """What a layer's rounded weight means, and its bias."""
    of, (weight, bias) = model.layers[operator.layer], folded[operator.layer]
    scale = of.scale / np.float32(model.quantisations[operator.data].scale)
    return of.weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias
