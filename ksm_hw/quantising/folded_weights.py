"""The weights and biases of a task, its masks and BatchNorms folded in: what is quantised."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.mask_names import bias_of, weight_of
from ksm_hw.masks.soft_mask import broadcast_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.quantising.network import Convolution, Network

Float32Array = npt.NDArray[np.float32]


def folded_weights(network: Network, bundle: Bundle, pack: TaskPack) -> dict[str, tuple[Float32Array, Float32Array]]:
    """Weight float32 [O, …] and bias float32 [O] of every layer, by its path.

    In float32, each operation rounded: with `s = γ / √(σ² + ε)` the weight is `(W · mask) · s`, the bias `β - μ · s`,
    or `β + (b - μ) · s` where the layer has one of its own. The weight of a BatchNorm that is a layer is `s`.
    """
    tensors = {**bundle.tensors, **pack.own_tensors}
    return {layer.layer: _folded(layer, tensors, pack, layer.layer == network.logits) for layer in network.convolutions}


def _folded(
    layer: Convolution, tensors: Mapping[str, Float32Array], pack: TaskPack, is_head: bool
) -> tuple[Float32Array, Float32Array]:
    if is_head:
        weight, bias = pack.head_weight, pack.head_bias
    elif layer.layer == layer.batch_norm:
        bias = np.zeros(layer.groups, np.float32)
        weight = np.ones((layer.groups, 1, 1, 1), np.float32)
    else:
        weight = tensors[weight_of(layer.layer)]
        bias = tensors[bias_of(layer.layer)] if layer.has_bias else np.zeros(len(weight), np.float32)
        if layer.layer in pack.masks:
            mask = unpack_mask(pack.masks[layer.layer])
            weight = weight * broadcast_mask(mask, weight.shape, pack.granularity)
    if layer.batch_norm is None:
        return weight, bias
    gamma, beta, mean, variance = (
        tensors[f"{layer.batch_norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + np.float32(layer.epsilon))
    shift = beta + (bias - mean) * scale if layer.has_bias else beta - mean * scale
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), shift
