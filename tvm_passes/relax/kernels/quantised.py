"""The kernels of int8 as tensor expressions: what `docs/quantisation.md` states, operator by operator.

A tensor's quantisation is float32 [2], its scale and zero point. Kernels come in two kinds: those that calculate with
parameters alone, which run once a task, and those of inferences, which take what the former gave:

    bounds      float32 [3]    of a result: its zero point, and the least and largest quantised value
    multiplier  float32 [O]    of sums, or [1]

Nothing is added to a product of floats before it is rounded to an integer: LLVM contracts such to fused multiply-adds
on some CPUs, and results would differ.
"""

import math
from collections.abc import Sequence

from tvm import te, tirx

from tvm_passes.relax.kernels.convolution_sums import windowed_sums

LARGEST = 255
LARGEST_WEIGHT = 127
LARGEST_BIAS = 2**30
SMALLEST_WEIGHT_SCALE = 2.0**-60
ADDITION_STEPS = 2**16

# What a quantised value is larger than the integer of that type which holds it.
OFFSETS = {"uint8": 0, "int8": 128}

Clamp = tuple[float, float]


def _float(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")


def _limited(value: tirx.Expr, low: tirx.Expr | float, high: tirx.Expr | float) -> tirx.Expr:
    low, high = (_float(one) if isinstance(one, (int, float)) else one for one in (low, high))
    return te.max(te.min(value, high), low)


# What runs once a task.


# Marks `product`'s kernel, for `FuseWeightRewrite`.
ROUNDED_PRODUCT = "rounded_product"


def product(left: te.Tensor, right: te.Tensor) -> te.Tensor:
    """The product of two vectors, in a kernel of its own: what is added to it is added after it is rounded."""
    return te.compute(left.shape, lambda i: left[i] * right[i], name="product")


def bounds_of(scale: tirx.Expr, zero_point: tirx.Expr, clamp: Clamp) -> tuple[tirx.Expr, tirx.Expr, tirx.Expr]:
    """Zero point, least and largest quantised value of a result that is clamped; all float32."""

    def bound(value: float, unbounded: int) -> tirx.Expr:
        if not math.isfinite(value):
            return _float(unbounded)
        steps = tirx.nearbyint(_float(value) / scale)
        return _limited(steps + zero_point, 0, LARGEST)

    return zero_point, bound(clamp[0], 0), bound(clamp[1], LARGEST)


def result_bounds(quantisation: te.Tensor, clamp: Clamp) -> te.Tensor:
    """`bounds_of` a quantisation; float32 [3]."""
    return _vector(bounds_of(quantisation[0], quantisation[1], clamp))


def input_parameters(quantisation: te.Tensor) -> te.Tensor:
    """1 / scale, and the zero point; float32 [2]."""
    return te.compute((2,), lambda i: te.if_then_else(i == 0, _float(1) / quantisation[0], quantisation[1]))


def largest_weights(weight: te.Tensor) -> te.Tensor:
    """The largest |w| of each output channel of a weight [..., O]; float32 [O]."""
    *inner, outputs = (int(extent) for extent in weight.shape)
    axes = [te.reduce_axis((0, extent), name=f"r{place}") for place, extent in enumerate(inner)]
    return te.compute((outputs,), lambda o: te.max(te.abs(weight(*axes, o)), axis=axes), name="largest")


def channel_scale(largest: tirx.Expr, bias: tirx.Expr, data_scale: tirx.Expr) -> tirx.Expr:
    """What a step of a channel's weights means, of which the largest |w| is given; all float32."""
    found = te.max(largest / _float(LARGEST_WEIGHT), te.abs(bias) / data_scale * _float(1 / LARGEST_BIAS))
    return tirx.Select(found < _float(SMALLEST_WEIGHT_SCALE), _float(1), found)


def channel_scales(largest: te.Tensor, bias: te.Tensor, data: te.Tensor) -> te.Tensor:
    """What a step of each output channel's weights means; float32 [O]."""
    return te.compute(largest.shape, lambda o: channel_scale(largest[o], bias[o], data[0]), name="scales")


def quantised_weight(weight: te.Tensor, scales: te.Tensor) -> te.Tensor:
    """The weight [..., O] in steps of its channels' scales; int8."""

    def value(*place: tirx.Var) -> tirx.Expr:
        steps = tirx.nearbyint(weight[place] / scales[place[-1]])
        return _limited(steps, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype("int8")

    return te.compute(weight.shape, value, name="quantised")


def sum_scales(scales: te.Tensor, data: te.Tensor) -> te.Tensor:
    """What a step of each channel's sum means: scale of the data times that of the weight; float32 [O]."""
    return te.compute(scales.shape, lambda o: data[0] * scales[o], name="sum_scales")


def weight_sums(weight: te.Tensor) -> te.Tensor:
    """The sum of each output channel of a quantised weight [..., O]; int32 [O]."""
    *inner, outputs = (int(extent) for extent in weight.shape)
    axes = [te.reduce_axis((0, extent), name=f"r{place}") for place, extent in enumerate(inner)]
    return te.compute((outputs,), lambda o: te.sum(weight(*axes, o).astype("int32"), axis=axes), name="sums")


def channel_bias(
    bias: tirx.Expr, sum_scale: tirx.Expr, weights: tirx.Expr, zero_point: tirx.Expr, data_type: str
) -> tirx.Expr:
    """A channel's bias in steps of its sum, less what the zero point adds to sums of products; int32.

    Args:
        bias, sum_scale: float32.
        weights: the sum of the channel's quantised weights, int32.
        zero_point: of the data, float32.
        data_type: that holds the data, in which its zero point is another number.
    """
    steps = _limited(tirx.nearbyint(bias / sum_scale), -LARGEST_BIAS, LARGEST_BIAS).astype("int32")
    return steps - (zero_point.astype("int32") - OFFSETS[data_type]) * weights


def quantised_bias(bias: te.Tensor, scales: te.Tensor, sums: te.Tensor, data: te.Tensor, data_type: str) -> te.Tensor:
    """`channel_bias` of each output channel; int32 [O]."""
    return te.compute(
        bias.shape, lambda o: channel_bias(bias[o], scales[o], sums[o], data[1], data_type), name="quantised_bias"
    )


def multipliers(scales: te.Tensor, into: te.Tensor) -> te.Tensor:
    """What sums of each channel are multiplied by; float32 [O]."""
    return te.compute(scales.shape, lambda o: scales[o] / into[0], name="multipliers")


def addition_parameters(left: te.Tensor, right: te.Tensor, into: te.Tensor) -> te.Tensor:
    """Zero point and factor of each operand, and the multiplier of the sum; float32 [5]."""
    larger, steps = te.max(left[0], right[0]), _float(ADDITION_STEPS)
    of_left, of_right = (tirx.nearbyint(one[0] / larger * steps) for one in (left, right))
    values = (left[1], of_left, right[1], of_right, larger / steps / into[0])
    return _vector(values)


def product_parameters(left: te.Tensor, right: te.Tensor, into: te.Tensor) -> te.Tensor:
    """Zero point of each factor, and the multiplier of the product; float32 [3]."""
    return _vector((left[1], right[1], left[0] * right[0] / into[0]))


def stored_table(table: te.Tensor, data_type: str) -> te.Tensor:
    """A table uint8 [256] as bytes of a type, each at the place that the byte which is looked up is as uint8."""
    offset = OFFSETS[data_type]
    return te.compute(
        table.shape, lambda i: (table[(i + offset) % (LARGEST + 1)].astype("int32") - offset).astype(data_type)
    )


def rescaling_parameters(data: te.Tensor, into: te.Tensor, values: int) -> te.Tensor:
    """Zero point of the data, and the multiplier of the mean of so many values; float32 [2]."""
    scale = data[0] if values == 1 else data[0] / _float(values)
    return _vector((data[1], scale / into[0]))


def _vector(values: Sequence[tirx.Expr]) -> te.Tensor:
    def value(i: tirx.Var) -> tirx.Expr:
        found = values[-1]
        for place, one in reversed(list(enumerate(values[:-1]))):
            found = te.if_then_else(i == place, one, found)
        return found

    return te.compute((len(values),), value)


# What runs in every inference.


def _integer(data: te.Tensor, *place: tirx.Expr) -> tirx.Expr:
    """A quantised value of a tensor of bytes, int32."""
    return data[place].astype("int32") + OFFSETS[str(data.dtype)]


def _stored(quantised: tirx.Expr, dtype: str) -> tirx.Expr:
    """A quantised value, float32, as a type holds it."""
    return (quantised - _float(OFFSETS[dtype])).astype(dtype)


def requantised(accumulated: tirx.Expr, multiplier: tirx.Expr, bounds: te.Tensor, dtype: str) -> tirx.Expr:
    """A sum as a byte: one rounding of one product."""
    steps = tirx.nearbyint(accumulated.astype("float32") * multiplier)
    return _stored(_limited(steps + bounds[0], bounds[1], bounds[2]), dtype)


def quantised_input(data: te.Tensor, parameters: te.Tensor, data_type: str = "uint8") -> te.Tensor:
    """Real values as bytes."""

    def value(*place: tirx.Var) -> tirx.Expr:
        steps = tirx.nearbyint(data[place] * parameters[0])
        return _stored(_limited(steps + parameters[1], 0, LARGEST), data_type)

    return te.compute(data.shape, value, name="quantised")


def convolution_sums(
    data: te.Tensor,
    weight: te.Tensor,
    bias: te.Tensor,
    quantisation: te.Tensor,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> te.Tensor:
    """Sums of products and bias, int32 [N, H', W', O].

    Args:
        data: uint8 [N, H, W, groups·I].
        weight: int8 [kH, kW, I, O].
        bias: int32 [O].
        quantisation: of the data, whose zero point is what it is padded with.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels.
    """
    height, width, inputs, outputs = map(int, weight.shape)
    zero = quantisation[1].astype("uint8")
    window = (height, width, inputs, outputs), strides, padding, dilation, groups
    sums = windowed_sums(data, lambda *place: weight[place], *window, zero=zero, dtype="int32")
    return te.compute(sums.shape, lambda n, y, x, o: sums[n, y, x, o] + bias[o], name="with_bias")


def dense_sums(data: te.Tensor, weight: te.Tensor, bias: te.Tensor) -> te.Tensor:
    """Sums of products and bias, int32 [N, O], of data uint8 [N, I] and weight int8 [I, O]."""
    i = te.reduce_axis((0, int(data.shape[1])), name="i")
    shape = (data.shape[0], weight.shape[1])
    product = te.compute(
        shape, lambda n, o: te.sum(data[n, i].astype("int32") * weight[i, o].astype("int32"), axis=i), name="dense"
    )
    return te.compute(shape, lambda n, o: product[n, o] + bias[o], name="with_bias")


def requantised_sums(sums: te.Tensor, multiplier: te.Tensor, bounds: te.Tensor) -> te.Tensor:
    """Sums [..., O] as uint8."""
    return te.compute(
        sums.shape, lambda *place: requantised(sums[place], multiplier[place[-1]], bounds, "uint8"), name="result"
    )


def real_sums(sums: te.Tensor, scales: te.Tensor) -> te.Tensor:
    """Sums [..., O] as real values, float32."""
    return te.compute(sums.shape, lambda *place: sums[place].astype("float32") * scales[place[-1]], name="result")


def addition(left: te.Tensor, right: te.Tensor, parameters: te.Tensor, bounds: te.Tensor) -> te.Tensor:
    """The sum of two tensors of one shape and type, bytes."""
    integers = [parameters[place].astype("int32") for place in range(4)]

    def value(*place: tirx.Var) -> tirx.Expr:
        of_left = (_integer(left, *place) - integers[0]) * integers[1]
        of_right = (_integer(right, *place) - integers[2]) * integers[3]
        return requantised(of_left + of_right, parameters[4], bounds, str(left.dtype))

    return te.compute(left.shape, value, name="result")


def multiplication(left: te.Tensor, right: te.Tensor, parameters: te.Tensor, bounds: te.Tensor) -> te.Tensor:
    """The product of two tensors of bytes [N, H, W, C], of which one may have a single pixel for all."""
    shape = [max(int(a), int(b)) for a, b in zip(left.shape, right.shape, strict=True)]

    def factor(tensor: te.Tensor, number: int, place: tuple[tirx.Var, ...]) -> tirx.Expr:
        own = [0 if int(extent) == 1 else axis for extent, axis in zip(tensor.shape, place, strict=True)]
        return _integer(tensor, *own) - parameters[number].astype("int32")

    def value(*place: tirx.Var) -> tirx.Expr:
        product = factor(left, 0, place) * factor(right, 1, place)
        return requantised(product, parameters[2], bounds, str(left.dtype))

    return te.compute(shape, value, name="result")


def window_mean(
    data: te.Tensor, parameters: te.Tensor, bounds: te.Tensor, window: tuple[int, int], strides: tuple[int, int]
) -> te.Tensor:
    """The mean of each window of data [N, H, W, C], bytes [N, H', W', C]; nothing is padded."""
    batch, height, width, channels = map(int, data.shape)
    y, x = te.reduce_axis((0, window[0]), name="y"), te.reduce_axis((0, window[1]), name="x")
    rows, columns = (
        (size - one) // stride + 1 for size, one, stride in zip((height, width), window, strides, strict=True)
    )

    def of_window(n: tirx.Var, row: tirx.Var, column: tirx.Var, c: tirx.Var) -> tirx.Expr:
        return te.sum(_integer(data, n, row * strides[0] + y, column * strides[1] + x, c), axis=[y, x])

    sums = te.compute((batch, rows, columns, channels), of_window, name="sums")
    zeros = parameters[0].astype("int32") * (window[0] * window[1])
    return te.compute(
        sums.shape,
        lambda *place: requantised(sums[place] - zeros, parameters[1], bounds, str(data.dtype)),
        name="result",
    )


def rescaled(data: te.Tensor, parameters: te.Tensor, bounds: te.Tensor) -> te.Tensor:
    """The same values in another quantisation, bytes."""
    zero = parameters[0].astype("int32")
    return te.compute(
        data.shape,
        lambda *place: requantised(_integer(data, *place) - zero, parameters[1], bounds, str(data.dtype)),
        name="result",
    )
