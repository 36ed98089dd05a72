"""Direct convolutions whose weights lie packed: the output channels that a CPU holds in registers lie together.

In HWIO the weights of a block of output channels lie as far apart as there are output channels; the vectors of one
block come from many cache lines and pages, or each task must copy them together first. Packed once a task, every step
of the reduction reads on where the one before stopped.

Where no wide vectors divide the output channels, as 116 = 4 · 29, a convolution computes some more channels, of weights
that are 0, and crops them: of vectors of 16 values it takes 8 for a pixel, of those that divide 116 it takes 29.
"""

from tvm import te, tirx

from tvm_passes.relax.kernels.convolution_sums import windowed_sums

# Marks the convolution for its schedule rule; its value is `lanes`.
ANNOTATION = "packed"
# Marks a convolution whose output channels are filled up; its value is how many it has without.
OUTPUTS = "outputs"


def packed_convolution(
    data: te.Tensor,
    weight: te.Tensor,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    outputs: int | None = None,
) -> te.Tensor:
    """The convolution.

    Args:
        data: [N, H, W, groups·I], of any type.
        weight: [O / lanes, kH, kW, I, lanes], of the same type; the channels of a block are of one group.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels.
        outputs: how many of the O channels are not filled up; None where all are the convolution's.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    blocks, *kernel, inputs, lanes = map(int, weight.shape)
    filled_up = {} if outputs is None else {OUTPUTS: outputs}
    return windowed_sums(
        data,
        lambda ky, kx, i, o: weight[o // lanes, ky, kx, i, o % lanes],
        (kernel[0], kernel[1], inputs, blocks * lanes),
        strides,
        padding,
        dilation,
        groups,
        zero=tirx.const(0, data.dtype),
        dtype=data.dtype,
        attrs={ANNOTATION: lanes, **filled_up},
    )


def filled_convolution(
    data: te.Tensor,
    weight: te.Tensor,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    lanes: int,
) -> te.Tensor:
    """The convolution of one group, which packs its weights itself and fills them up.

    Args:
        data, strides, padding, dilation: as `packed_convolution`.
        weight: [kH, kW, I, O], of the type of data.
        lanes: output channels of a block; they need not divide O.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    kernel_height, kernel_width, inputs, outputs = map(int, weight.shape)

    def value(block: tirx.Var, ky: tirx.Var, kx: tirx.Var, i: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        o = block * lanes + lane
        return tirx.if_then_else(o < outputs, weight[ky, kx, i, o], tirx.const(0, weight.dtype))

    blocks = (-(-outputs // lanes), kernel_height, kernel_width, inputs, lanes)
    filled = te.compute(blocks, value, name="filled")
    sums = packed_convolution(data, filled, strides, padding, dilation, 1, outputs)
    return te.compute((*sums.shape[:3], outputs), lambda n, y, x, o: sums[n, y, x, o], name="cropped")
