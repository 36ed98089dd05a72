"""Sums of products made bytes again: `clamp(rint(sum · multiplier) + zero point)`, in vectors.

It is clamped from above as float32, before it is rounded: what an instruction cannot convert to int32 is at its least
value then. Packing clamps at the least byte, and the lower bound is met by the bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

_PACKED = 4  # Vectors of sums that become one of bytes.


@dataclass(frozen=True)
class Requantisation:
    """To a quantisation with bounds.

    Attributes:
        vectors: of the CPU.
        bounds: float32 [3], as `quantised.result_bounds` gives them.
    """

    vectors: IntegerVectors
    bounds: tirx.Var

    def store(
        self, result: tirx.Var, products: Sequence[tirx.Expr], targets: Sequence[tirx.Expr], lengths: Sequence[int]
    ) -> None:
        """Requantises and stores vectors.

        Args:
            result: bytes, as one row.
            products: sums times multipliers, float32 [lanes] each.
            targets: where each vector begins in the result.
            lengths: how many of its values are stored.
        """
        lanes = self.vectors.lanes
        zero = T.bind(T.cast(self.vectors.stored(self.bounds[0]), "int16"))
        least = T.broadcast(T.cast(self.vectors.stored(self.bounds[1]), self.vectors.data_type), _PACKED * lanes)
        most = T.bind(T.broadcast(self.bounds[2] - self.bounds[0], lanes))
        for first in range(0, len(products), _PACKED):
            group = products[first : first + _PACKED]
            rounded = [T.bind(self.vectors.rounded(tirx.min(product, most))) for product in group]
            rounded += [rounded[-1]] * (_PACKED - len(rounded))
            packed = T.bind(tirx.max(self.vectors.narrowed(rounded, zero), least))
            for number in range(len(group)):
                start = number * lanes
                store(result, targets[first + number], [packed], range(start, start + lengths[first + number]))


def store(buffer: tirx.Var, start: tirx.Expr, vectors: list[tirx.Expr], places: Iterable[int]) -> None:
    """Stores some of the values of vectors as neighbours."""
    indices = [T.int32(place) for place in places]
    place = start if len(indices) == 1 else T.ramp(start, 1, len(indices))
    T.buffer_store(buffer, T.Shuffle(vectors, indices), [place])
