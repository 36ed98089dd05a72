"""What vector instructions of each CPU do with integers: sums of products of bytes, and sums made bytes again.

A step multiplies 4 neighbouring bytes of data, the same for all lanes, by 4 weights of each lane, and adds the products
to the lane's sum. The lanes · 4 weights of a step lie together, in the order that `lane_and_byte` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.target.codegen import target_has_features

STEP = 4
"""Bytes of data that a step multiplies."""


@dataclass(frozen=True)
class IntegerVectors:
    """A CPU's instructions for integers.

    Attributes:
        lanes: int32 in a register.
        registers: how many there are.
        instruction: what it calls the product, as a disassembler writes it.
    """

    lanes: int
    registers: int
    instruction: str

    @property
    def data_type(self) -> str:
        """Of activations: uint8, or int8 that holds what is 128 less."""
        return "uint8"

    def stored(self, value: tirx.Expr) -> tirx.Expr:
        """A quantised value, float32, as the type of the data holds it."""
        return value if self.data_type == "uint8" else value - T.float32(128)

    def most_pixels(self, vectors: int) -> int:
        """Pixels whose sums fit into registers with so many vectors of channels, beside weights and data."""
        return max(1, (self.registers - vectors - 1) // vectors)

    @property
    def steps_at_once(self) -> int:
        """Steps whose data is read together."""
        return 1

    def lane_and_byte(self, place: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Whose weight stands at a place of a step's lanes · 4: of which lane, for which byte of the data."""
        return place // STEP, place % STEP

    def steps_of(self, data: tirx.Var, place: tirx.Expr, steps: int) -> list[tirx.Expr]:
        """What `add_products` takes of the data of some steps from a place on."""
        raise NotImplementedError

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        """Sums with the products of a step.

        Args:
            sums: int32 [lanes].
            data: as `steps_of` gives it.
            weights: int8 [lanes · 4].
        """
        raise NotImplementedError

    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        """What `add_products` takes of 4 rows of 16 channels: in each lane the 4 bytes of a channel.

        Args:
            rows: 16 bytes each.
        """
        every = 16
        return [
            T.bind(
                T.Shuffle(
                    list(rows),
                    [
                        T.int32(every * row + channel)
                        for channel in range(first, first + self.lanes)
                        for row in range(STEP)
                    ],
                )
            )
            for first in range(0, every, self.lanes)
        ]

    def rounded(self, values: tirx.Expr) -> tirx.Expr:
        """float32 [lanes] as int32, ties to even."""
        raise NotImplementedError

    def narrowed(self, sums: Sequence[tirx.Expr], zero: tirx.Expr) -> tirx.Expr:
        """Four vectors of int32, plus a zero point, as one of bytes, what is too large or small clamped.

        Args:
            sums: int32 [lanes] each.
            zero: int16.
        """
        raise NotImplementedError


def _call(dtype: str, name: str, *arguments: tirx.Expr) -> tirx.Expr:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


@dataclass(frozen=True)
class _Avx(IntegerVectors):
    """What AVX-512 and AVX2 have in common: vectors of parts of 128 bits, to which packing keeps."""

    def steps_of(self, data: tirx.Var, place: tirx.Expr, steps: int) -> list[tirx.Expr]:
        return [T.bind(self._repeated(data[T.ramp(place + STEP * step, 1, STEP)])) for step in range(steps)]

    def _repeated(self, bytes_: tirx.Expr) -> tirx.Expr:
        return T.broadcast(T.reinterpret("int32", bytes_), self.lanes)

    @property
    def _name(self) -> str:
        return "avx512" if self.lanes == 16 else "avx2"

    @property
    def _suffix(self) -> str:
        return ".512" if self.lanes == 16 else ""

    def rounded(self, values: tirx.Expr) -> tirx.Expr:
        dtype = f"int32x{self.lanes}"
        if self.lanes == 16:
            every, current = T.int16(-1), T.int32(4)
            zeros = T.broadcast(T.int32(0), self.lanes)
            return _call(dtype, "llvm.x86.avx512.mask.cvtps2dq.512", values, zeros, every, current)
        return _call(dtype, "llvm.x86.avx.cvt.ps2dq.256", values)

    def narrowed(self, sums: Sequence[tirx.Expr], zero: tirx.Expr) -> tirx.Expr:
        shorts, size = f"int16x{2 * self.lanes}", 4 * self.lanes
        zeros = T.broadcast(zero, 2 * self.lanes)
        halves = [
            _call(shorts, "llvm.sadd.sat", _call(shorts, f"llvm.x86.{self._name}.packssdw{self._suffix}", *pair), zeros)
            for pair in (sums[:2], sums[2:])
        ]
        packed = T.bind(_call(f"uint8x{size}", f"llvm.x86.{self._name}.packuswb{self._suffix}", *halves))
        # Packing takes 128 bits of each, one after the other.
        order = [
            16 * part + 4 * vector + lane for vector in range(4) for part in range(self.lanes // 4) for lane in range(4)
        ]
        return T.bind(T.Shuffle([packed], [T.int32(place) for place in order]))


@dataclass(frozen=True)
class _Vnni(_Avx):
    """`vpdpbusd`: products of uint8 and int8, summed up in int32 without saturation."""

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        return _call(f"int32x{self.lanes}", name, sums, T.reinterpret(f"uint8x{4 * self.lanes}", data), weights)


def integer_vectors(target: Target) -> IntegerVectors | None:
    """The instructions of a target's CPU; None if it has none that are known here."""
    if target_has_features("avx512vnni", target) and target_has_features("avx512bw", target):
        return _Vnni(16, 32, "vpdpbusd")
    return None
