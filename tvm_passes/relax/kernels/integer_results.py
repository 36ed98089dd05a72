"""Sums of products made bytes again: `clamp(rint(sum · multiplier) + zero point)`, in vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_vectors import IntegerVectors

PACKED = 4
"""Vectors of sums that become one of bytes."""
_WORD = 4  # Bytes of a vector of sums of NEON.


@dataclass(frozen=True)
class Run:
    """Results that are neighbours.

    Attributes:
        target: where they begin in the result.
        products: float32 [lanes] each.
        length: how many are stored.
    """

    target: tirx.Expr
    products: Sequence[tirx.Expr]
    length: int


@dataclass(frozen=True)
class Requantisation:
    """To a quantisation with bounds.

    Attributes:
        vectors: of the CPU.
        bounds: float32 [3], as `quantised.result_bounds` gives them.
    """

    vectors: IntegerVectors
    bounds: tirx.Var

    def store(self, result: tirx.Var, runs: Sequence[Run]) -> None:
        """Requantises and stores, all runs together: as many vectors as are packed may be of several.

        Args:
            result: bytes, as one row.
            runs: sums times multipliers.
        """
        lanes = self.vectors.lanes
        bounds = [T.bind(self.bounds[place]) for place in range(3)]
        every = [(place, number) for place, run in enumerate(runs) for number in range(len(run.products))]
        for first in range(0, len(every), PACKED):
            group = every[first : first + PACKED]
            products = [T.bind(runs[place].products[number]) for place, number in group]
            products += [products[-1]] * (PACKED - len(products))
            packed, start = T.bind(self.vectors.requantised(products, bounds)), 0
            for place, some in groupby(group, itemgetter(0)):
                run, numbers = runs[place], [number for _place, number in some]
                length = min(len(numbers) * lanes, run.length - numbers[0] * lanes)
                store(result, run.target + numbers[0] * lanes, [packed], range(start, start + length))
                start += len(numbers) * lanes


def store(buffer: tirx.Var, start: tirx.Expr, vectors: list[tirx.Expr], places: range) -> None:
    """Stores some of the values of vectors as neighbours."""
    if len(places) == _WORD and buffer.dtype == "int8":
        # LLVM takes four bytes out of a vector one by one, but not a word.
        words = T.reinterpret("int32x4", vectors[0])
        value = T.reinterpret("int8x4", T.Shuffle([words], [T.int32(places[0] // _WORD)]))
    else:
        value = T.Shuffle(vectors, [T.int32(place) for place in places])
    T.buffer_store(buffer, value, [start if len(places) == 1 else T.ramp(start, 1, len(places))])
