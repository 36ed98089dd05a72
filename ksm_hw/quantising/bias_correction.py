"""Bias correction: what rounding shifts the sums of a layer by, on real images, is taken out of its bias.

Rounding to nearest has no bias over many products. A layer of few products over even ground has one, of whole channels,
and every layer behind it passes it on (docs/quantisation.md). So each layer in turn, reading what the corrected ones
before it give, gets the bias with which the mean of each channel, over images and pixels, is that of float32.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.calibration import Range
from ksm_hw.masks.task_pack import HEAD_BIAS, TaskPack
from ksm_hw.quantising.float_model import Folded, operator_result
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import IntegerModel, quantised_model
from ksm_hw.quantising.network import INPUT, Convolution, Network, Operator, operands
from ksm_hw.quantising.observers import BiasCorrection
from ksm_hw.quantising.scheme import dequantise, quantise

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
OnLayer = Callable[[int, int], None]

_BATCH = 10  # Images at once, of which tensors are held in float32.


def corrected_biases(
    network: Network,
    bundle: Bundle,
    pack: TaskPack,
    ranges: Mapping[str, Range],
    images: Float32Array,
    correction: BiasCorrection,
    on_layer: OnLayer = lambda done, total: None,
) -> dict[str, Float32Array]:
    """The biases that int8 is to take, by the names of the tensors that it takes them in the place of.

    Args:
        network: of the task.
        bundle: has the backbone.
        pack: the task.
        ranges: of its tensors.
        images: float32 [N, 3, H, W], preprocessed as the task's.
        correction: of which layers; what has no bias, and no BatchNorm either, stays as it is.
        on_layer: called after each corrected layer with how many are, and of how many.
    """
    folded = folded_weights(network, bundle, pack)
    layers = {"none": [], "first": network.convolutions[:1], "all": network.convolutions}[correction]
    places = {one.layer: place for one in layers if (place := _bias_of(one, network)) is not None}
    shifts = _shifts(quantised_model(network, folded, ranges), folded, images, places.keys(), on_layer)
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
    model: IntegerModel, folded: Folded, images: Float32Array, wanted: Collection[str], on_layer: OnLayer
) -> dict[str, Float32Array]:
    """Of each wanted layer, float32 [O], by how much its sums in float32 are above those of rounded numbers.

    Between two operators the tensors of all images lie as uint8, until nothing reads them any more: a network's in
    float32 are gigabytes.
    """
    last = max((place for place, one in enumerate(model.network.operators) if one.result in wanted), default=-1)
    operators = model.network.operators[: last + 1]
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    expected = _expected_means(operators, folded, batches, wanted)
    known = {INPUT: [quantise(batch, model.quantisations[INPUT]) for batch in batches]}
    shifts: dict[str, Float32Array] = {}
    for operator, unread in zip(operators, _unread_behind(operators), strict=True):
        weights = dict(folded)
        if isinstance(operator, Convolution):
            weight, bias = _rounded_layer(model, folded, operator)
            weights = {operator.layer: (weight, bias)}
            if operator.layer in wanted:
                free = _without_clamp(operator)
                sums = (operator_result(free, tensors, weights) for tensors in _dequantised(model, operator, known))
                shift = (expected[operator.layer] - _mean_of_channels(sums)).astype(np.float32)
                shifts[operator.layer] = shift
                weights = {operator.layer: (weight, bias + shift)}
                on_layer(len(shifts), len(wanted))
        if operator.result != model.network.logits:
            into = model.quantisations[operator.result]
            known[operator.result] = [
                quantise(operator_result(operator, tensors, weights).numpy(), into)
                for tensors in _dequantised(model, operator, known)
            ]
        for name in unread:
            del known[name]
    return shifts


def _expected_means(
    operators: Sequence[Operator], folded: Folded, batches: Sequence[Float32Array], wanted: Collection[str]
) -> dict[str, Float64Array]:
    """Of each wanted layer, float64 [O], the mean of each channel's sums in float32."""
    means = {layer: np.zeros(1) for layer in wanted}
    for batch in batches:
        share = len(batch) / sum(map(len, batches))
        known = {INPUT: torch.from_numpy(batch)}
        for operator, unread in zip(operators, _unread_behind(operators), strict=True):
            if isinstance(operator, Convolution) and operator.layer in wanted:
                sums = operator_result(_without_clamp(operator), known, folded)
                means[operator.layer] = means[operator.layer] + share * _mean_of_channels([sums])
                known[operator.result] = sums.clamp(*operator.clamp)
            else:
                known[operator.result] = operator_result(operator, known, folded)
            for name in unread:
                del known[name]
    return means


def _without_clamp(layer: Convolution) -> Convolution:
    return dataclasses.replace(layer, clamp=(-math.inf, math.inf))


def _mean_of_channels(batches: Iterable[torch.Tensor]) -> Float64Array:
    """Over images and pixels, float64 [O]."""
    images, total = 0, np.zeros(1)
    for sums in batches:
        total = total + sums.double().mean((0, *range(2, sums.ndim))).numpy() * len(sums)
        images += len(sums)
    return total / images


def _unread_behind(operators: Sequence[Operator]) -> list[list[str]]:
    """Of each operator, the tensors that it is the last to read."""
    last = {name: place for place, one in enumerate(operators) for name in operands(one)}
    return [[name for name, reader in last.items() if reader == place] for place in range(len(operators))]


def _dequantised(
    model: IntegerModel, operator: Operator, known: Mapping[str, Sequence[UInt8Array]]
) -> Iterator[dict[str, torch.Tensor]]:
    """What an operator reads, in float32, batch by batch."""
    names = operands(operator)
    for parts in zip(*(known[name] for name in names), strict=True):
        yield {
            name: torch.from_numpy(dequantise(part, model.quantisations[name]))
            for name, part in zip(names, parts, strict=True)
        }


def _rounded_layer(model: IntegerModel, folded: Folded, operator: Convolution) -> tuple[Float32Array, Float32Array]:
    """What a layer's rounded weight means, and its bias."""
    of, (weight, bias) = model.layers[operator.layer], folded[operator.layer]
    scale = of.scale / np.float32(model.quantisations[operator.data].scale)
    return of.weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias
