"""Direct convolutions whose weights lie packed: the output channels that a CPU holds in registers lie together.

In HWIO the weights of a block of output channels lie as far apart as there are output channels; the vectors of one
block come from many cache lines and pages, or each task must copy them together first. Packed once a task, every step
of the reduction reads on where the one before stopped.
"""

from tvm import te, tirx

# Marks the convolution for its schedule rule; its value is `lanes`.
ANNOTATION = "packed"


def packed_convolution(
    data: te.Tensor,
    weight: te.Tensor,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> te.Tensor:
    """The convolution.

    Args:
        data: [N, H, W, groups·I], of any type.
        weight: [O / lanes, kH, kW, I, lanes], of the same type; the channels of a block are of one group.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    batch, height, width, _ = map(int, data.shape)
    blocks, kernel_height, kernel_width, inputs, lanes = map(int, weight.shape)
    top, left, bottom, right = padding
    rows = (height + top + bottom - dilation[0] * (kernel_height - 1) - 1) // strides[0] + 1
    columns = (width + left + right - dilation[1] * (kernel_width - 1) - 1) // strides[1] + 1
    if any(padding):
        data = _padded(data, padding)
    outputs = blocks * lanes
    ky = te.reduce_axis((0, kernel_height), name="ky")
    kx = te.reduce_axis((0, kernel_width), name="kx")
    i = te.reduce_axis((0, inputs), name="i")

    def product(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.Expr:
        channel = i if groups == 1 else o // (outputs // groups) * inputs + i
        value = data[n, y * strides[0] + ky * dilation[0], x * strides[1] + kx * dilation[1], channel]
        return te.sum(value * weight[o // lanes, ky, kx, i, o % lanes], axis=[ky, kx, i])

    return te.compute((batch, rows, columns, outputs), product, name="convolution", attrs={ANNOTATION: lanes})


def _padded(data: te.Tensor, padding: tuple[int, int, int, int]) -> te.Tensor:
    batch, height, width, channels = map(int, data.shape)
    top, left, bottom, right = padding

    def value(n: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, x >= left, x < width + left)
        return tirx.if_then_else(inside, data[n, y - top, x - left, i], tirx.const(0, data.dtype))

    return te.compute((batch, height + top + bottom, width + left + right, channels), value, name="padded")
