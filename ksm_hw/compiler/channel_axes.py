"""Which tensors of a network have their channels in common, so that a channel is in all of them or in none.

Those that are added or multiplied have, and those around activations, pooling, depthwise convolutions and whatever else
computes a channel from that one alone.
"""

from collections.abc import Mapping

import torch

from ksm_hw.quantising.network import (
    INPUT,
    Concatenation,
    Convolution,
    Network,
    Operator,
    Rearrangement,
    operands,
)


class ChannelAxes:
    """The axes of channels: which tensors have theirs in common.

    Attributes:
        of: the axis of each tensor, by a number.
        features: how many values a channel has along a tensor's second axis: its pixels where these were flattened.
        channels: of each axis how many there are.
        whole: the axes of which every channel stays.
        apart: results whose channels come each from that one channel of what is read.
        mixed: results of convolutions and dense layers whose channels come each from all channels of the data.

    Args:
        network: the operators.
        shapes: of all tensors but the logits, with a batch of 1.
    """

    def __init__(self, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.of, self.features = {INPUT: 0}, {INPUT: 1}
        self.channels, self.whole = {0: shapes[INPUT][1]}, {0}
        self.apart, self.mixed = set[str](), set[str]()
        for operator in network.operators:
            self._add(operator, shapes)
        self.whole.add(self.of[network.logits])

    def _add(self, operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> None:
        read, result = operands(operator), operator.result
        features = self._features_kept(operator, shapes)
        if features is not None:
            for other in read[1:]:
                self._tie(self.of[read[0]], self.of[other])
            self.of[result], self.features[result] = self.of[read[0]], features
            self.apart.add(result)
            return
        own = len(self.channels)
        self.of[result], self.features[result] = own, 1
        self.channels[own] = shapes[result][1] if result in shapes else 1
        if isinstance(operator, Convolution) and _mixes(operator, shapes[operator.data]):
            self.mixed.add(result)
        else:
            self.whole |= {own, *(self.of[name] for name in read)}

    def _features_kept(self, operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Of an operator that keeps channels apart and in their order the features of each; None of any other."""
        # Channels of which there are fewer, or one for all, are others.
        (features, _), *others = found = [(self.features[name], shapes[name][1]) for name in operands(operator)]
        if isinstance(operator, Rearrangement):
            more = _features(operator, shapes[operator.data])
            return None if more is None else more * features
        keeps = not isinstance(operator, (Convolution, Concatenation)) or _is_depthwise(operator, shapes)
        return features if keeps and all(other == found[0] for other in others) else None

    def _tie(self, left: int, right: int) -> None:
        if right in self.whole:
            self.whole.add(left)
        self.of = {name: left if axis == right else axis for name, axis in self.of.items()}


def _is_depthwise(operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether each channel of a convolution's result comes from the same channel of its data alone."""
    if not isinstance(operator, Convolution) or operator.groups == 1:
        return False
    return operator.groups == shapes[operator.data][1] == shapes[operator.result][1]


def _mixes(operator: Convolution, data: tuple[int, ...]) -> bool:
    """Whether each channel of the result comes from all channels of the data, which lie along its second axis."""
    return operator.groups == 1 and len(data) == (2 if operator.dense else 4)


def _features(operator: Rearrangement, shape: tuple[int, ...]) -> int | None:
    """How many features a channel becomes; None where channels do not stay in their order."""
    numbers = torch.arange(shape[1], dtype=torch.float32)
    found = operator.function(numbers.reshape(1, -1, *[1] * (len(shape) - 2)).expand(1, *shape[1:]))
    features, rest = divmod(found.shape[1], shape[1])
    expected = numbers.repeat_interleave(max(features, 1))
    stays = not rest and bool((found == expected.reshape(1, -1, *[1] * (found.ndim - 2))).all())
    return features if stays else None
