"""Direct convolutions whose weights lie packed: the output channels that a CPU holds in registers lie together.

In HWIO the weights of a block of output channels lie as far apart as there are output channels; the vectors of one
block come from many cache lines and pages, or each task must copy them together first. Packed once a task, every step
of the reduction reads on where the one before stopped.

Where no good tile divides the output channels, as 116 = 4 · 29 and 208 = 16 · 13, the weights are followed by some that
are 0: a convolution computes a few channels more, in better tiles, and crops them. So it is where a group has fewer
channels than a vector: a block then holds several groups', and the last one may have room for more.
"""

from tvm import te, tirx

from tvm_passes.relax.kernels.convolution_sums import windowed_sums

# Marks the convolution for its schedule rule; its value is `lanes`.
ANNOTATION = "packed"
# Marks a convolution whose output channels are filled up; its value is how many it has without.
OUTPUTS = "outputs"
# Marks a convolution whose blocks hold the channels of several groups; its value is how many of them a group has.
OF_GROUP = "of_group"


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
        weight: [O / lanes, kH, kW, I, lanes], of the same type; a block is of one group, or holds whole groups.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels.
        outputs: how many of the O channels are not filled up; None where all are the convolution's.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    blocks, *kernel, inputs, lanes = map(int, weight.shape)
    of_group = (outputs or blocks * lanes) // groups
    marks = {ANNOTATION: lanes} if outputs is None else {ANNOTATION: lanes, OUTPUTS: outputs}
    if groups > 1 and of_group < lanes:
        marks[OF_GROUP] = of_group
    return windowed_sums(
        data,
        lambda ky, kx, i, o: weight[o // lanes, ky, kx, i, o % lanes],
        (kernel[0], kernel[1], inputs, blocks * lanes),
        strides,
        padding,
        dilation,
        1 if groups == 1 else blocks * lanes // of_group,
        joined=max(1, lanes // of_group),
        zero=tirx.const(0, data.dtype),
        dtype=data.dtype,
        attrs=marks,
    )


def cropped_convolution(
    data: te.Tensor,
    weight: te.Tensor,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    outputs: int,
) -> te.Tensor:
    """The convolution whose output channels are filled up, without these.

    Args:
        data, strides, padding, dilation, groups: as `packed_convolution`.
        weight: [filled up O / lanes, kH, kW, I, lanes], of the type of data.
        outputs: O.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    sums = packed_convolution(data, weight, strides, padding, dilation, groups, outputs)
    return te.compute((*sums.shape[:3], outputs), lambda n, y, x, o: sums[n, y, x, o], name="cropped")
