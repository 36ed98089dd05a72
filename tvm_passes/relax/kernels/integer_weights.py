"""What a task's layer becomes in int8: its weights, the scale of its sums and its bias (docs/quantisation.md).

`quantised_layer` states it as a tensor expression of the layer's weight in float32. Inside the kernel that rewrites a
weight, `IntegerWeights` does the same from the backbone's weight: a task of up to 16 output channels is swept twice,
for the largest weight of each channel and, while they are near, for the integers.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels import exact_quotient, quantised
from tvm_passes.relax.kernels.integer_packing import IntegerPacking
from tvm_passes.relax.kernels.mask_decoding import DTYPE, LANES
from tvm_passes.relax.kernels.weight_storing import ChannelGroup, WeightStore

# Marks `quantised_layer`'s kernel, for `FuseWeightRewrite`: the type of the data, and how the weight is packed.
INTEGER_WEIGHT = "integer_weight"
_CHANNELS = 16  # Of a task.


def quantised_layer(
    weight: te.Tensor,
    bias: te.Tensor,
    data: te.Tensor,
    data_type: str,
    pack: Callable[..., te.Tensor] | None = None,
    *options: Hashable,
) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
    """From a weight float32 [..., O], a bias float32 [O] and the quantisation of the data, which is held as a type.

    Returns:
        The weight in int8, packed by `pack` with its options; what a step of each channel's sum means, float32 [O]; and
        the bias in such steps, less what the zero point of the data adds to sums of products, int32 [O].
    """
    scales = quantised.channel_scales(quantised.largest_weights(weight), bias, data)
    integers = quantised.quantised_weight(weight, scales)
    of_sums = quantised.sum_scales(scales, data)
    biases = quantised.quantised_bias(bias, of_sums, quantised.weight_sums(integers), data, data_type)
    if pack is None:
        return integers, of_sums, biases
    if len(integers.shape) == 2:  # A 1×1 convolution.
        of_matrix = integers
        integers = te.compute((1, 1, *of_matrix.shape), lambda _y, _x, i, o: of_matrix[i, o], name="kernel")
    return pack(integers, *options), of_sums, biases


def layer_mark(data_type: str, packing: IntegerPacking | None) -> list[Any]:
    """What a fused kernel has to know, as an attribute of the kernel of `quantised_layer`."""
    return [data_type] if packing is None else [data_type, packing.segments, packing.order, packing.groups]


def layer_options(mark: Sequence[Any]) -> tuple[str, IntegerPacking | None]:
    """What a mark says."""
    data_type, *packing = mark
    if not packing:
        return str(data_type), None
    segments, order, groups = packing
    rows = tuple(tuple(map(int, segment)) for segment in segments)
    return str(data_type), IntegerPacking(rows, tuple(map(int, order)), int(groups))


def _all(value: float) -> tirx.Expr:
    return T.broadcast(T.float32(value), LANES)


@dataclass(frozen=True)
class Largest:
    """The largest |w| of each of a task's channels, float32 [16]."""

    values: tirx.Var

    def note(self, group: ChannelGroup, _value: int, vector: tirx.Expr) -> None:
        """One value of each channel of a group."""
        place = T.ramp(group.place, 1, LANES)
        T.buffer_store(self.values, T.max(self.values[place], T.abs(vector)), [place])


@dataclass(frozen=True)
class QuantisedTask:
    """A task's weights as they are quantised.

    Attributes:
        layer: what is read and written beside the weights.
        groups: the task's channels.
        scales: what a step of each channel's weights means, float32 [16].
        divisors: the scales and their reciprocals as `exact_quotient` wants them, float32 [16]; nothing where the CPU
            divides.
        sums: of each channel's integers, int32 [16].
    """

    layer: "IntegerWeights"
    groups: list[ChannelGroup]
    scales: tirx.Var
    divisors: tuple[tirx.Var, ...]
    sums: tirx.Var

    def store(self, result: WeightStore, start: tirx.Expr, group: ChannelGroup, value: int, vector: tirx.Expr) -> None:
        """Quantises and writes one value of each channel of a group; see `WeightStore.store`."""
        place = T.ramp(group.place, 1, LANES)
        if self.divisors:
            vector = exact_quotient.quotient(T.bind(vector), *(one[place] for one in self.divisors))
        else:
            vector = vector / self.scales[place]
        # No clamp: by a scale of the largest |w| / 127 none is more than 127 steps, rounded.
        integers = T.bind(T.cast(T.nearbyint(vector), f"int32x{LANES}"))
        T.buffer_store(self.sums, self.sums[place] + integers, [place])
        result.store(start, group, value, T.cast(integers, f"int8x{LANES}"))

    def finish(self) -> None:
        """Writes the scales of the sums and the biases, when all sums are known."""
        scale, zero = (self.layer.data[place] for place in range(2))
        for group in self.groups:
            for row in range(group.count):
                channel = group.channel + row
                of_sum = T.bind(scale * self.scales[group.place + row])
                bias, weights = self.layer.bias[channel], self.sums[group.place + row]
                steps = quantised.channel_bias(bias, of_sum, weights, zero, self.layer.data_type)
                T.buffer_store(self.layer.scales, of_sum, [channel])
                T.buffer_store(self.layer.biases, steps, [channel])


@dataclass(frozen=True)
class IntegerWeights:
    """What a kernel reads and writes beside a weight.

    Attributes:
        data_type: that holds the layer's data.
        by_products: whether quotients are found by fused products (`exact_quotient`) and not by division.
        bias: of the layer, float32 [O].
        data: the quantisation of the data.
        scales, biases: the results.
    """

    data_type: str
    by_products: bool
    bias: tirx.Var
    data: tirx.Var
    scales: tirx.Var
    biases: tirx.Var

    def begin(self) -> Largest:
        """Zeros, before the first sweep of a task."""
        largest = T.alloc_buffer((_CHANNELS,), DTYPE, scope="local")
        for place in range(0, _CHANNELS, LANES):
            T.buffer_store(largest, _all(0), [T.ramp(place, 1, LANES)])
        return Largest(largest)

    def quantised(self, groups: list[ChannelGroup], largest: Largest) -> QuantisedTask:
        """The scales, before the second sweep."""
        scales = T.alloc_buffer((_CHANNELS,), DTYPE, scope="local")
        sums = T.alloc_buffer((_CHANNELS,), "int32", scope="local")
        divisors = [T.alloc_buffer((_CHANNELS,), DTYPE, scope="local") for _ in range(2 if self.by_products else 0)]
        for group in groups:
            T.buffer_store(sums, T.broadcast(T.int32(0), LANES), [T.ramp(group.place, 1, LANES)])
            for row in range(group.count):
                of_channel = largest.values[group.place + row], self.bias[group.channel + row]
                scale = quantised.channel_scale(*of_channel, self.data[0])
                T.buffer_store(scales, scale, [group.place + row])
            for row in range(group.count, LANES):
                T.buffer_store(scales, T.float32(1), [group.place + row])
            if self.by_products:
                place = T.ramp(group.place, 1, LANES)
                for buffer, values in zip(divisors, exact_quotient.divisor_and_reciprocal(scales[place]), strict=True):
                    T.buffer_store(buffer, values, [place])
        return QuantisedTask(self, groups, scales, tuple(divisors), sums)
