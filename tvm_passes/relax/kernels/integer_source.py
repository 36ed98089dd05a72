"""Copies of what a task of a convolution reads: rows of bytes with the zero point around them."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

_SLACK = 64  # Values behind a copy, which vectors may read.


@dataclass(frozen=True)
class Source:
    """Where data lies.

    Attributes:
        buffer: bytes, or what they were widened to, as one row.
        origin: the place of the first value that row 0 of the result reads.
        pitch: from one row of the data to the next.
    """

    buffer: tirx.Var
    origin: tirx.Expr
    pitch: int


def copied_rows(
    shape: IntegerConvolution,
    data: tirx.Var,
    zero_point: tirx.Expr,
    vectors: IntegerVectors,
    image: tirx.Expr,
    row: tirx.Expr,
    rows: int,
) -> Source:
    """Copies what so many rows of the result read, from one on, to a place of its own.

    Args:
        shape: of the convolution.
        data: as one row.
        zero_point: of the data, which it is padded with.
        vectors: of the CPU, which read the copy.
        image, row: the first row.
        rows: how many; those behind the last are padding.
    """
    _, height, width, channels = shape.data
    top, left, _bottom, right = shape.padding
    stride = shape.strides[0]
    copied = (rows - 1) * stride + shape.dilation[0] * (shape.kernel[0] - 1) + 1
    pitch = (left + width + right) * channels
    near = T.alloc_buffer((copied * pitch + _SLACK,), vectors.read_type)
    zero = T.bind(T.cast(vectors.stored(zero_point), vectors.read_type))
    with T.serial(copied) as line:
        read, start = T.bind(row * stride + line - top), T.bind(line * pitch)
        with T.If(tirx.all(read >= 0, read < height)):
            with T.Then():
                _fill(near, start, left * channels, zero)
                begin = T.bind((image * height + read) * (width * channels))
                with T.serial(width * channels) as place:
                    T.buffer_store(
                        near, T.cast(data[begin + place], vectors.read_type), [start + left * channels + place]
                    )
                _fill(near, start + (left + width) * channels, right * channels, zero)
            with T.Else():
                _fill(near, start, pitch, zero)
    return Source(near, T.bind(row * (-stride * pitch)), pitch)


def _fill(buffer: tirx.Var, start: tirx.Expr, count: int, value: tirx.Expr) -> None:
    if count:
        with T.serial(count) as place:
            T.buffer_store(buffer, value, [start + place])
