"""Linear layers whose weights lie packed, as those of a convolution do: see `packed_convolution`."""

from tvm import te

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION


def packed_product(data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """The matrix product.

    Args:
        data: [N, I], of any type.
        weight: [O / lanes, I, lanes], of the same type.

    Returns:
        [N, O], of the type of data and weight.
    """
    rows, _ = data.shape
    blocks, inputs, lanes = map(int, weight.shape)
    i = te.reduce_axis((0, inputs), name="i")
    return te.compute(
        (rows, blocks * lanes),
        lambda n, o: te.sum(data[n, i] * weight[o // lanes, i, o % lanes], axis=i),
        name="product",
        attrs={ANNOTATION: lanes},
    )
