"""What a task's layer becomes in int8: weights, bias, and how its sums are requantised (docs/quantisation.md).

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
from tvm_passes.relax.kernels.mask_decoding import DTYPE, LANES, VECTOR
from tvm_passes.relax.kernels.rounded_product import rounded
from tvm_passes.relax.kernels.weight_storing import ChannelGroup, WeightStore

# Marks `quantised_layer`'s kernel, for `FuseWeightRewrite`: see `layer_mark`.
INTEGER_WEIGHT = "integer_weight"
_CHANNELS = 16  # Of a task.


def quantised_layer(
    weight: te.Tensor,
    bias: te.Tensor,
    data: te.Tensor,
    into: te.Tensor,
    data_type: str,
    clamp: quantised.Clamp,
    pack: Callable[..., te.Tensor] | None = None,
    *options: Hashable,
) -> tuple[te.Tensor, ...]:
    """From a weight float32 [..., O], a bias float32 [O] and the quantisations of data and result.

    Args:
        weight, bias, data, into: as above.
        data_type: that holds the data.
        clamp: of the results.
        pack: what packs the weight, with its options.

    Returns:
        The weight in int8, packed; the multiplier of each channel's sum, float32 [O]; the bias in steps of the sum,
        less what the zero point of the data adds to sums of products, int32 [O]; and the results' `bounds`.
    """
    integers, of_sums, biases = quantised_head(weight, bias, data, data_type, pack, *options)
    return integers, quantised.multipliers(of_sums, into), biases, quantised.result_bounds(into, clamp)


def quantised_head(
    weight: te.Tensor,
    bias: te.Tensor,
    data: te.Tensor,
    data_type: str,
    pack: Callable[..., te.Tensor] | None = None,
    *options: Hashable,
) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
    """As `quantised_layer`, of what gives real values: in the place of multipliers what a step of each sum means."""
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


def layer_mark(data_type: str, clamp: quantised.Clamp | None, packing: IntegerPacking | None) -> list[Any]:
    """What a fused kernel has to know, as an attribute of the kernel of `quantised_layer` or `quantised_head`."""
    known: list[Any] = [data_type, list(clamp or ())]
    return known if packing is None else [*known, packing.segments, packing.order, packing.groups]


def layer_options(mark: Sequence[Any]) -> tuple[str, quantised.Clamp | None, IntegerPacking | None]:
    """What a mark says."""
    data_type, bounds, *packing = mark
    clamp = (float(bounds[0]), float(bounds[1])) if bounds else None
    if not packing:
        return str(data_type), clamp, None
    segments, order, groups = packing
    rows = tuple(tuple(map(int, segment)) for segment in segments)
    return str(data_type), clamp, IntegerPacking(rows, tuple(map(int, order)), int(groups))


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
        biases: of the channels, float32 [16].
        scales: what a step of each channel's weights means, float32 [16].
        divisors: what `exact_quotient` multiplies by, float32 [16] each; where the CPU divides the scales.
        sums: of each channel's integers, int32 [16].
    """

    layer: "IntegerWeights"
    groups: list[ChannelGroup]
    biases: tirx.Var
    scales: tirx.Var
    divisors: tuple[tirx.Var, ...]
    sums: tirx.Var

    def steps(self, vector: tirx.Expr, divisors: Sequence[tirx.Expr]) -> tirx.Expr:
        """8 values in steps of their channels, int32, by what `divisors` has of those."""
        # No clamp: by a scale of the largest |w| / 127 none is more than 127 steps, rounded.
        if self.layer.by_products:
            return exact_quotient.rounded_quotient(vector, *divisors)
        (scale,) = divisors
        return exact_quotient.nearest_integers(vector / scale)

    def store(self, result: WeightStore, start: tirx.Expr, group: ChannelGroup, value: int, vector: tirx.Expr) -> None:
        """Quantises and writes one value of each channel of a group; see `WeightStore.store`."""
        place = T.ramp(group.place, 1, LANES)
        integers = T.bind(self.steps(vector, [one[place] for one in self.divisors]))
        T.buffer_store(self.sums, self.sums[place] + integers, [place])
        result.store(start, group, value, T.cast(integers, f"int8x{LANES}"))

    def finish(self) -> None:
        """Writes multipliers and biases, when all sums are known, and with the first channels the bounds."""
        layer = self.layer
        scale, zero = (layer.data[place] for place in range(2))
        for group in self.groups:
            for row in range(group.count):
                channel = group.channel + row
                of_sum = T.bind(scale * self.scales[group.place + row])
                bias, weights = self.biases[group.place + row], self.sums[group.place + row]
                steps = quantised.channel_bias(bias, of_sum, weights, zero, layer.data_type)
                T.buffer_store(layer.multipliers, of_sum if layer.into is None else of_sum / layer.into[0], [channel])
                T.buffer_store(layer.biases, steps, [channel])
        if layer.into is not None and layer.clamp is not None:
            with T.If(self.groups[0].channel == 0), T.Then():
                for place, bound in enumerate(quantised.bounds_of(layer.into[0], layer.into[1], layer.clamp)):
                    T.buffer_store(layer.bounds, bound, [T.int64(place)])


@dataclass(frozen=True)
class IntegerWeights:
    """What a kernel reads and writes beside a weight.

    Attributes:
        data_type: that holds the layer's data.
        by_products: whether quotients are found by fused products (`exact_quotient`) and not by division.
        clamp: of the results; None where these are real values.
        shift: the bias of the layer, float32 [O], or the β and mean of the BatchNorm that gives it.
        data: the quantisation of the data.
        into: that of the results; None where these are real values.
        multipliers, biases, bounds: what is written; no bounds where results are real values.
    """

    data_type: str
    by_products: bool
    clamp: quantised.Clamp | None
    shift: tuple[tirx.Var, ...]
    data: tirx.Var
    into: tirx.Var | None
    multipliers: tirx.Var
    biases: tirx.Var
    bounds: tirx.Var | None

    def begin(self) -> Largest:
        """Zeros, before the first sweep of a task."""
        largest = T.alloc_buffer((_CHANNELS,), DTYPE, scope="local")
        for place in range(0, _CHANNELS, LANES):
            T.buffer_store(largest, _all(0), [T.ramp(place, 1, LANES)])
        return Largest(largest)

    def bias(self, index: tirx.Expr, factor: tirx.Expr | None) -> tirx.Expr:
        """The bias of 8 channels: β - μ · factor, the product rounded before it is taken off."""
        first, *mean = self.shift
        if not mean:
            return first[index]
        return first[index] - rounded(mean[0][index] * factor, VECTOR)

    def quantised(self, groups: list[ChannelGroup], biases: list[tirx.Expr], largest: Largest) -> QuantisedTask:
        """The scales, before the second sweep; `biases` are those of each group."""
        of_channels = T.alloc_buffer((_CHANNELS,), DTYPE, scope="local")
        scales = T.alloc_buffer((_CHANNELS,), DTYPE, scope="local")
        sums = T.alloc_buffer((_CHANNELS,), "int32", scope="local")
        products = [T.alloc_buffer((_CHANNELS,), DTYPE, scope="local") for _ in range(2 if self.by_products else 0)]
        for group, bias in zip(groups, biases, strict=True):
            T.buffer_store(of_channels, bias, [T.ramp(group.place, 1, LANES)])
            T.buffer_store(sums, T.broadcast(T.int32(0), LANES), [T.ramp(group.place, 1, LANES)])
            for row in range(group.count):
                of_channel = largest.values[group.place + row], of_channels[group.place + row]
                scale = quantised.channel_scale(*of_channel, self.data[0])
                T.buffer_store(scales, scale, [group.place + row])
            for row in range(group.count, LANES):
                T.buffer_store(scales, T.float32(1), [group.place + row])
            if self.by_products:
                place = T.ramp(group.place, 1, LANES)
                for buffer, values in zip(products, exact_quotient.reciprocals(scales[place]), strict=True):
                    T.buffer_store(buffer, values, [place])
        return QuantisedTask(self, groups, of_channels, scales, tuple(products) or (scales,), sums)
