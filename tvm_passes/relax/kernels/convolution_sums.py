"""Sums of products over windows of data that lies channels-last, whichever way its weight lies."""

from collections.abc import Callable, Mapping
from typing import Any

from tvm import te, tirx

Padding = tuple[int, int, int, int]


def windowed_sums(
    data: te.Tensor,
    weight: Callable[[tirx.Var, tirx.Var, tirx.Var, tirx.Var], tirx.Expr],
    kernel: tuple[int, int, int, int],
    strides: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    groups: int,
    *,
    joined: int = 1,
    zero: tirx.Expr,
    dtype: str,
    attrs: Mapping[str, Any] | None = None,
) -> te.Tensor:
    """The sums of a convolution.

    Args:
        data: [N, H, W, groups·I].
        weight: from row, column, input channel of a group and output channel to the value.
        kernel: kH, kW, I, O.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels; more than the data has where the weight's channels are filled up.
        joined: groups whose outputs a vector holds together.
        zero: what the data is padded with.
        dtype: of products and sums.
        attrs: of the block.

    Returns:
        [N, H', W', O].
    """
    batch, height, width, channels = map(int, data.shape)
    kernel_height, kernel_width, inputs, outputs = kernel
    top, left, bottom, right = padding
    rows = (height + top + bottom - dilation[0] * (kernel_height - 1) - 1) // strides[0] + 1
    columns = (width + left + right - dilation[1] * (kernel_width - 1) - 1) // strides[1] + 1
    if any(padding):
        data = _padded(data, padding, zero)
    ky = te.reduce_axis((0, kernel_height), name="ky")
    kx = te.reduce_axis((0, kernel_width), name="kx")
    i = te.reduce_axis((0, inputs), name="i")

    def value(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.Expr:
        pixel = (n, y * strides[0] + ky * dilation[0], x * strides[1] + kx * dilation[1])
        if groups == 1:
            return data(*pixel, i)
        of_group, last = outputs // groups, channels // inputs - 1
        first = o // (joined * of_group) * joined
        values = []
        for group in range(joined):
            # Channels that are filled up read what the last group does.
            number = first + group if groups == last + 1 else tirx.min(first + group, last)
            values.append(data(*pixel, number * inputs + i))
        # A choice among values that are the same for a whole vector: each of them is one instruction, or two.
        chosen = values.pop()
        for group in reversed(range(joined - 1)):
            chosen = tirx.Select(o % (joined * of_group) < (group + 1) * of_group, values[group], chosen)
        return chosen

    def product(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.Expr:
        return te.sum(value(n, y, x, o).astype(dtype) * weight(ky, kx, i, o).astype(dtype), axis=[ky, kx, i])

    return te.compute((batch, rows, columns, outputs), product, name="convolution", attrs=attrs)


def _padded(data: te.Tensor, padding: Padding, zero: tirx.Expr) -> te.Tensor:
    batch, height, width, channels = map(int, data.shape)
    top, left, bottom, right = padding

    def value(n: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, x >= left, x < width + left)
        return tirx.if_then_else(inside, data[n, y - top, x - left, i], zero)

    return te.compute((batch, height + top + bottom, width + left + right, channels), value, name="padded")
