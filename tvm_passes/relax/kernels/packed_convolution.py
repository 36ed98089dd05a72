"""Direct convolutions whose weights lie packed: the output channels that a CPU holds in registers lie together.

In HWIO the weights of a block of output channels lie as far apart as there are output channels; the vectors of one
block come from many cache lines and pages, or each task must copy them together first. Packed once a task, every step
of the reduction reads on where the one before stopped.
"""

from tvm import te, tirx

from tvm_passes.relax.kernels.convolution_sums import windowed_sums

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
    blocks, *kernel, inputs, lanes = map(int, weight.shape)
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
        attrs={ANNOTATION: lanes},
    )
