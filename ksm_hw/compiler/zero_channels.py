"""Channels that are 0 in every task of an artifact are left out of its backbone, packs and heads.

A network that grew for later tasks (CPG) has channels that older ones do not use, and a binary mask by kernels or by
channels may leave some of a depthwise layer to none. A channel is left out where whatever reads it, in every task,
multiplies it by weights of 0 or finds a 0 there for every image. So a channel whose weights are 0 stays where a bias
or a BatchNorm makes another constant of it, unless the activation behind that makes it 0 again.

Tensors that are added or multiplied, and those around depthwise convolutions and whatever else keeps channels apart,
have their channels in common: one is left out of all of them or of none. Where channels are concatenated, shuffled or
convolved in groups, all stay, and so they do in networks with operators that `quantising.network` does not know, in
masks by groups, whose values neighbours share, and in backbones that are rounded already.

In int8, and in backbones rounded to it, a weight of such a channel counts no more in the scale of its output channel.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.compiler.channel_axes import ChannelAxes
from ksm_hw.compiler.compiled import check_heads
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import Tensors, by_kind
from ksm_hw.masks.mask_names import bias_of, layer_of, weight_of
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import broadcast_mask, selected, selected_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.float_model import operator_result
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.network import (
    INPUT,
    Activation,
    Addition,
    Convolution,
    Network,
    NotQuantisable,
    Operator,
    Product,
    network_of,
    operands,
)

_log = logging.getLogger(__name__)

TOGETHER = 8  # Kernels compute so many channels at once: of zeros as many stay as fill them up.
_SAME = 1e-6  # Of the logits, in float64, where sums have fewer terms and another order.

_Places = npt.NDArray[np.bool_]
_Constants = npt.NDArray[np.float32]  # Of each channel its value for every image, or NaN where pixels differ.
_Folded = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Narrowed:
    """A bundle without its zero channels, and how many `channels` of layers these are."""

    bundle: Bundle
    channels: int


def without_zero_channels(bundle: Bundle) -> Narrowed:
    """Leaves out the channels that are 0 in all tasks of a bundle.

    Returns:
        A bundle of its own, over narrower weights with a hash of their own, whose tasks give the logits that they gave;
        the same bundle where no channel is left out.

    Raises:
        UserError: there is no such network, or the weights do not fit it.
    """
    whole = Narrowed(bundle, 0)
    layers = [
        layer_of(name) for name, array in bundle.tensors.items() if array.ndim > 1 and weight_of(layer_of(name)) == name
    ]
    coarse = bundle.backbone_precision != "float32" or any(
        pack.granularity == "group" for pack in bundle.packs.values()
    )
    if not bundle.packs or coarse or not any(_has_zeros(bundle, layer) for layer in layers):
        return whole
    pack = next(iter(bundle.packs.values()))
    try:
        network = network_of(bundle, pack)
    except NotQuantisable as error:
        _log.info("channels that are 0 in all tasks stay: %s", error)
        return whole
    kept = _kept_places(network, bundle)
    channels = sum(int((~kept[weight_of(layer.layer)][0]).sum()) for layer in network.convolutions)
    if not channels:
        return whole
    narrow = _narrow_bundle(bundle, kept, network.logits)
    for task in bundle.packs:
        _check_same(bundle, narrow, task)
    _log.info("%d channels that are 0 in all tasks are left out", channels)
    return Narrowed(narrow, channels)


def narrowed_as(compiled: Bundle, source: Bundle) -> Bundle:
    """The source that an artifact's bundle was compiled from, without the channels that were left out of it.

    The source as it is where nothing was left out, or the artifact is of other tasks.
    """
    packs = {task: pack for task, pack in source.packs.items() if task in compiled.packs}
    if source.backbone_sha256 == compiled.backbone_sha256 or packs.keys() != compiled.packs.keys():
        return source
    return without_zero_channels(dataclasses.replace(source, packs=packs)).bundle


def _has_zeros(bundle: Bundle, layer: str) -> bool:
    """Whether of a layer's output or input channels enough to be left out have weights of 0 alone in all tasks.

    A glance at each layer by itself, for the network takes seconds to read.
    """
    weight = bundle.tensors[weight_of(layer)]
    outputs, inputs = np.zeros(len(weight), bool), np.zeros(weight.shape[1], bool)
    for pack in bundle.packs.values():
        some = weight != 0
        if layer in pack.masks:
            some &= broadcast_mask(unpack_mask(pack.masks[layer]), weight.shape, pack.granularity) != 0
        pairs = some.reshape(len(outputs), len(inputs), -1).any(2)
        outputs |= pairs.any(1)
        inputs |= pairs.any(0)
        if _filled_up(outputs).all() and _filled_up(inputs).all():
            return False
    return True


def _kept_places(network: Network, bundle: Bundle) -> dict[str, tuple[_Places, ...]]:
    """Of each tensor of the state dict the output channels that stay, and, of weights, the inputs that do."""
    axes: ChannelAxes | None = None
    used: dict[str, _Places] = {}
    for pack in bundle.packs.values():
        # Biases for int8 may make another constant of a channel than those of float32.
        for one in (pack,) if pack.calibration is None else (pack, pack.for_int8):
            folded = folded_weights(network, bundle, one)
            if axes is None:
                shapes = _shapes(network, folded, pack.preprocessing.image_size)
                (head,) = (operands(layer) for layer in network.convolutions if layer.layer == network.logits)
                check_heads(bundle, shapes[head[0]][1:])
                axes = ChannelAxes(network, shapes)
            for layer, pairs in _used(network, axes, folded).items():
                used[layer] = used[layer] | pairs if layer in used else pairs
    assert axes is not None
    return _places(network, axes, _alive(network, axes, used))


@torch.inference_mode()
def _shapes(network: Network, folded: _Folded, image_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of one image but the logits."""
    known = {INPUT: torch.zeros(1, 3, image_size, image_size)}
    for operator in network.operators:
        if operator.result != network.logits:
            known[operator.result] = operator_result(operator, known, folded)
    return {name: tuple(data.shape) for name, data in known.items()}


def _used(network: Network, axes: ChannelAxes, folded: _Folded) -> dict[str, _Places]:
    """What a task's layers that mix channels read of these: bool [outputs, channels]; of the head [1, channels]."""
    constants: dict[str, _Constants] = {INPUT: np.full(axes.channels[0], np.nan, np.float32)}
    used = {}
    for operator in network.operators:
        result, known = operator.result, [constants[name] for name in operands(operator)]
        constants[result] = np.full(axes.channels[axes.of[result]], np.nan, np.float32)
        if isinstance(operator, Convolution) and result in axes.mixed:
            weight, bias = folded[operator.layer]
            pairs = weight.reshape(len(weight), len(known[0]), -1).any(2) & (known[0] != 0)
            constants[result] = np.where(pairs.any(1), np.float32(np.nan), np.clip(bias, *operator.clamp))
            used[result] = pairs.any(0, keepdims=True) if result == network.logits else pairs
        elif result in axes.apart:
            constants[result] = _constants(operator, known, folded)
    return used


def _constants(operator: Operator, known: Sequence[_Constants], folded: _Folded) -> _Constants:
    """What an operator that keeps channels apart makes of constant ones; what is not a number stays so."""
    match operator:
        case Convolution():
            weight, bias = folded[operator.layer]
            # A constant other than 0 ends where the image does, and zeros are padded.
            varies = weight.reshape(len(weight), -1).any(1) & (known[0] != 0)
            return np.where(varies, np.float32(np.nan), np.clip(bias, *operator.clamp))
        case Addition():
            return np.clip(known[0] + known[1], *operator.clamp)
        case Product():
            return np.where((known[0] == 0) | (known[1] == 0), np.float32(0), known[0] * known[1])
        case Activation():
            function: Callable[[torch.Tensor], torch.Tensor] = getattr(torch.nn.functional, operator.function)
            return np.where(np.isnan(known[0]), known[0], function(torch.from_numpy(known[0])).numpy())
        case _:
            return known[0]


def _alive(network: Network, axes: ChannelAxes, used: Mapping[str, _Places]) -> dict[int, _Places]:
    """Of each axis the channels that the logits come from, by what is read in any task."""
    alive = {axis: np.full(channels, axis in axes.whole) for axis, channels in axes.channels.items()}
    before = -1
    while before != (now := sum(int(places.sum()) for places in alive.values())):
        before = now
        for layer in reversed([one for one in network.convolutions if one.layer in used]):
            rows = (
                used[layer.layer] if layer.layer == network.logits else used[layer.layer][alive[axes.of[layer.result]]]
            )
            alive[axes.of[layer.data]] |= rows.any(0)
    return alive


def _places(network: Network, axes: ChannelAxes, alive: Mapping[int, _Places]) -> dict[str, tuple[_Places, ...]]:
    """The channels that stay, by the names of tensors of the state dict: those that are alive, and some beside."""
    kept = {axis: _filled_up(places) for axis, places in alive.items()}
    found: dict[str, tuple[_Places, ...]] = {}
    for layer in network.convolutions:
        rows, columns = kept[axes.of[layer.result]], kept[axes.of[layer.data]]
        if layer.groups == 1:
            found[weight_of(layer.layer)] = (rows, np.repeat(columns, axes.features[layer.data]))
        elif layer.layer != layer.batch_norm:
            found[weight_of(layer.layer)] = (rows,)
        names = [bias_of(layer.layer)] if layer.has_bias else []
        if layer.batch_norm is not None:
            names += [f"{layer.batch_norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        found.update(dict.fromkeys(names, (rows,)))
    return found


def _filled_up(alive: _Places) -> _Places:
    """The channels that are alive, and the first others that fill them up to a multiple of `TOGETHER`."""
    count = int(alive.sum())
    wanted = min(-(-max(count, 1) // TOGETHER) * TOGETHER, len(alive))
    kept = alive.copy()
    kept[np.flatnonzero(~alive)[: wanted - count]] = True
    return kept


def _narrow_bundle(bundle: Bundle, kept: Mapping[str, tuple[_Places, ...]], head: str) -> Bundle:
    tensors = {
        name: np.ascontiguousarray(selected(array, kept.get(name, ()))) for name, array in bundle.tensors.items()
    }
    sha256 = sha256_of_tensors(tensors)
    packs = {task: _narrow_pack(pack, kept, head, tensors, sha256) for task, pack in bundle.packs.items()}
    return dataclasses.replace(bundle, backbone_sha256=sha256, tensors=tensors, packs=packs)


def _narrow_pack(
    pack: TaskPack, kept: Mapping[str, tuple[_Places, ...]], head: str, tensors: Tensors, sha256: str
) -> TaskPack:
    own = {name: selected(array, kept.get(name, ())) for name, array in pack.own_tensors.items()}
    norms, parameters = by_kind(own, tensors)
    calibration = pack.calibration
    if calibration is not None:
        biases = {name: selected(array, kept.get(name, ())) for name, array in calibration.biases.items()}
        # Ranges that belong to other weights still do.
        known = sha256 if calibration.backbone_sha256 == pack.backbone_sha256 else calibration.backbone_sha256
        calibration = dataclasses.replace(calibration, backbone_sha256=known, biases=biases)
    _, features = kept[weight_of(head)]
    return dataclasses.replace(
        pack,
        backbone_sha256=sha256,
        masks={layer: selected_mask(mask, kept.get(weight_of(layer), ())) for layer, mask in pack.masks.items()},
        batch_norms=norms,
        parameters=parameters,
        head_weight=np.ascontiguousarray(pack.head_weight.compress(features, 1)),
        calibration=calibration,
    )


@torch.inference_mode()
def _check_same(wide: Bundle, narrow: Bundle, task: str) -> None:
    """Checks that a task gives the same logits; what verifies an artifact has the narrow network alone."""
    size = wide.packs[task].preprocessing.image_size
    images = torch.randn(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = (task_module(each, each.packs[task]).double()(images) for each in (wide, narrow))
    if not (before - after).abs().max() <= _SAME * before.abs().max():
        raise AssertionError(f"without the channels that are 0 task '{task}' would give other logits")
