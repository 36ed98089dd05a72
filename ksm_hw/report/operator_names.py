"""Names for the functions of a library that a person can read."""

import re

Shape = tuple[int, ...]

# TVM joins the names of the operators that it fuses with underscores, and some names have underscores of their own.
_LONG_NAMES = (
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "conv2d_transpose", "expand_dims",
    "strided_slice", "broadcast_to", "layer_norm", "log_softmax", "look_up", "winograd_conv2d",
)  # fmt: skip
_NAME = re.compile(rf"(?:tir_)?({'|'.join(_LONG_NAMES)}|(?:[a-z]+(?:[123]d)?))\d*(?:_|$)")
# What `Quantise` calls convolutions of integers, whose weights are packed.
_INTEGER_CONVOLUTION = re.compile(r"k(\d+)x(\d+)_(?:s(\d+)_)?(?:g(\d+)_)?(depthwise_)?conv2d\d*")

# What `SeparateKernels` calls the kernels of an operator.
_SEPARATED = re.compile(r"(.+)_kernel_(\d+)_of_(\d+)")


def extents(shape: Shape) -> str:
    """The shape of a tensor, for a person: `56×56×64`, without the ones that lead it."""
    leading = next((place for place, extent in enumerate(shape) if extent != 1), max(len(shape) - 1, 0))
    return "×".join(map(str, shape[leading:]))


def operator_name(symbol: str, shapes: tuple[Shape, ...]) -> str:
    """What a function of the library does, for a person.

    Args:
        symbol: its name in the library, such as `fused_conv2d3_add1_relu`.
        shapes: of the tensors that it takes, the results last; a convolution's data is NHWC, and its weight HWIO, or
            with the output channels in blocks OHWIo.

    Returns:
        The names of the operators, numbers left out: `conv2d 3×3 s2 + add + relu`; the symbol, where it has none.
    """
    if symbol.startswith("unpack_mask"):  # Then follow the granularity and the mask's shape.
        return "unpack mask"
    if (found := _SEPARATED.fullmatch(symbol)) is not None:
        return f"{operator_name(found[1], ())} (kernel {found[2]} of {found[3]})"
    if (found := _INTEGER_CONVOLUTION.fullmatch(symbol)) is not None:
        height, width, stride, groups, depthwise = found.groups()
        grouping = " depthwise" if depthwise else f" {groups} groups" if groups else ""
        return f"conv2d {height}×{width}" + (f" s{stride}" if stride else "") + grouping
    names = [match[1].replace("_", " ") for match in _NAME.finditer(symbol.removeprefix("fused_"))]
    if not names:
        return symbol
    ranks = [len(shape) for shape in (*shapes[:2], *shapes[-1:])]
    if names[0] == "conv2d" and ranks in ([4, 4, 4], [4, 5, 4]):
        # A second one is the depthwise convolution behind a 1×1 convolution (`FuseExpansions`).
        depthwise = names.index("conv2d", 1) if "conv2d" in names[1:] else None
        names[0] += _convolution(shapes[0], shapes[1], shapes[0] if depthwise else shapes[-1])
        if depthwise:
            expanded = (*shapes[0][:3], shapes[-1][-1])
            weight = next(one for one in shapes[2:] if one[2:] == (1, expanded[3]) and max(one[:2]) > 1)
            names[depthwise] += _convolution(expanded, weight, shapes[-1])
    return " + ".join(names)


def _convolution(data: Shape, weight: Shape, result: Shape) -> str:
    """Kernel, stride and grouping, as ` 3×3 s2 depthwise`."""
    height, width, inputs = weight[-4:-1]
    stride, groups = round(data[1] / result[1]), data[3] // inputs
    grouping = "" if groups == 1 else " depthwise" if groups == data[3] else f" {groups} groups"
    return f" {height}×{width}" + (f" s{stride}" if stride > 1 else "") + grouping
