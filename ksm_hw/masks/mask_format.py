"""What a mask may be: which weights share a value of it, and in how many bits its soft values lie. Needs no NumPy.

A soft mask multiplies a weight `W` [O, I/g, kH, kW] (a convolution) or [O, I] (a linear layer). One mask value is
shared by the weights that its granularity names:

=========  ===================================  ==================================================
kernel     [O, I/g, 1, 1], linear [O, I]        each k×k kernel (KSM)
element    the weight's shape                   each weight (Piggyback, PackNet, CPG)
channel    [O, 1, 1, 1], linear [O, 1]          each output channel
group      [O, ⌈(I/g)/8⌉, 1, 1], linear alike   the kernels of 8 neighbouring input channels
=========  ===================================  ==================================================
"""

from typing import Literal, get_args

Granularity = Literal["kernel", "element", "channel", "group"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
GROUP_SIZE = 8  # Input channels that share a value in a `group` mask; 8 floats are one AVX2 vector.

# Of a soft value: 32 is float32 as it was learned, 8 and 4 are codes, 1 is a code of two values, such as 0 and -1 of a
# ternary mask, and 0 is a binary mask, which has none.
ScaleBits = Literal[0, 1, 4, 8, 32]
LEARNED_BITS: tuple[ScaleBits, ...] = (32, 8, 4)  # What soft values that were learned may be stored in.


def group_size(granularity: Granularity) -> int:
    """How many input channels share a value."""
    return GROUP_SIZE if granularity == "group" else 1


def mask_shape(weight_shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Shape of the mask of a weight [O, I/g, kH, kW] or [O, I]."""
    outputs, inputs, *kernel = weight_shape
    ones = (1,) * len(kernel)
    match granularity:
        case "kernel":
            return (outputs, inputs, *ones)
        case "element":
            return weight_shape
        case "channel":
            return (outputs, 1, *ones)
        case "group":
            return (outputs, -(-inputs // GROUP_SIZE), *ones)
