"""What a convolution of bytes is, for the kernels that compute it."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from tvm_passes.relax.kernels.integer_vectors import IntegerVectors


@dataclass(frozen=True)
class IntegerConvolution:
    """The shape of a convolution.

    Attributes:
        data: [N, H, W, groups·I], uint8.
        kernel: height and width.
        outputs: channels, of all groups.
        strides, dilation: of y and x.
        padding: top, left, bottom and right.
        groups: of the channels.
    """

    data: tuple[int, int, int, int]
    kernel: tuple[int, int]
    outputs: int
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def result(self) -> tuple[int, int, int, int]:
        """[N, H', W', O]."""
        batch, height, width, _ = self.data
        top, left, bottom, right = self.padding
        rows = (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.strides[0] + 1
        columns = (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.strides[1] + 1
        return batch, rows, columns, self.outputs

    @property
    def inputs(self) -> int:
        """Channels of a group."""
        return self.data[3] // self.groups

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Row and column in the window of each run of neighbouring bytes."""
        across = 1 if self._merged else self.kernel[1]
        return [(y, x) for y in range(self.kernel[0]) for x in range(across)]

    @property
    def run(self) -> int:
        """Bytes of a run."""
        return self.inputs * (self.kernel[1] if self._merged else 1)

    def steps(self, vectors: IntegerVectors) -> int:
        """Of a run."""
        return -(-self.run // vectors.packed_step) * (vectors.packed_step // vectors.step)

    def steps_of_sum(self, vectors: IntegerVectors) -> int:
        """Of all runs."""
        return len(self.runs) * self.steps(vectors)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel has an input channel of its own."""
        return self.inputs == 1 and self.outputs == self.groups > 1

    def is_direct(self, vectors: IntegerVectors) -> bool:
        """Whether steps can read the data where it lies."""
        in_place = vectors.read_type == vectors.data_type
        return in_place and not any(self.padding) and self.run % vectors.step == 0

    @property
    def is_flat(self) -> bool:
        """Whether the data of neighbouring pixels are neighbours too, of all rows and images."""
        return not any(self.padding) and self.kernel == (1, 1) and self.strides == (1, 1)

    @property
    def in_one_column(self) -> "IntegerConvolution":
        """The same where it is flat: each pixel is a row."""
        return replace(self, data=(1, math.prod(self.data[:3]), 1, self.data[3]))

    @property
    def _merged(self) -> bool:
        return self.groups == 1 and self.dilation[1] == 1

    def vectors(self, lanes: int) -> int:
        """Vectors of output channels of a group."""
        return -(-self.outputs // self.groups // lanes)

    @property
    def products(self) -> int:
        """Multiply-adds."""
        return math.prod(self.result) * math.prod(self.kernel) * self.inputs

    def instructions(self, vectors: IntegerVectors) -> IntegerVectors:
        """Those of a CPU's that compute it in the fewest: products of matrices put pixels together and apart."""
        if self.is_depthwise or math.prod(self.result[:3]) < vectors.pixels:
            return vectors.of_four_bytes
        if vectors.pixels == 1:
            return vectors
        joined = 1 + 1 / (vectors.pixels * min(4, self.vectors(vectors.lanes)))
        by_matrices = self.steps_of_sum(vectors) * joined + 1
        return vectors if by_matrices < self.steps_of_sum(vectors.of_four_bytes) else vectors.of_four_bytes
