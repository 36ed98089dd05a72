"""What vector instructions of each CPU do with integers: sums of products of bytes, and sums made bytes again.

A step multiplies 4 neighbouring bytes of data, the same for all lanes, by 4 weights of each lane, and adds the products
to the lane's sum; products of matrices multiply 8, of two pixels at once. The weights of a step lie together, in the
order that `lane_and_byte` says.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.target.codegen import target_has_features

STEP = 4
"""Bytes of a lane that are multiplied at once, and of data that a step multiplies where it is not of matrices."""

_WRITTEN_OUT = 9  # Steps of a sum of which LLVM leaves no loop.


@dataclass(frozen=True)
class IntegerVectors(ABC):
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

    @property
    def step(self) -> int:
        """Bytes of data that a step multiplies."""
        return STEP

    @property
    def packed_step(self) -> int:
        """Bytes of data whose weights are packed together: those of a step, or of some."""
        return self.step

    @property
    def pixels(self) -> int:
        """How many are in a step: their sums of a vector of channels are in as many registers."""
        return 1

    @property
    def of_four_bytes(self) -> "IntegerVectors":
        """The CPU's instructions whose steps are 4 bytes of one pixel, where they lie."""
        return self

    @property
    def read_type(self) -> str:
        """What steps read data as: where it is another type than the data's, they read copies of it."""
        return self.data_type

    @property
    def latency(self) -> int:
        """Cycles until a sum with a step's products can be added to."""
        return 5

    def most_pixels(self, vectors: int, steps: int) -> int:
        """Pixels whose sums fit into registers with so many vectors of channels, beside weights and data.

        Args:
            vectors: of channels.
            steps: of each sum.
        """
        return max(1, (self.registers - vectors - 1) // vectors)

    def step_cycles(self, pixels: int, vectors: int) -> float:
        """About what a step takes: two products in a cycle, and two loads."""
        return max(pixels * vectors, pixels + vectors) / 2

    @property
    def steps_at_once(self) -> int:
        """Steps whose data is read together."""
        return 1

    def lane_and_byte(self, place: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Whose weight stands at a place of those packed together: of which lane, for which byte of the data."""
        return place // self.packed_step, place % self.packed_step

    def begun(self, bias: tirx.Expr) -> list[tirx.Expr]:
        """The registers of a step's sums of a vector of channels, before the first step."""
        return [bias]

    def by_pixel(self, sums: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        """Those registers as int32 [lanes] of each pixel."""
        return list(sums)

    @abstractmethod
    def steps_of(self, data: tirx.Var, places: Sequence[tirx.Expr], steps: int, more: bool) -> list[tirx.Expr]:
        """What `add_products` takes of the data of some steps.

        Args:
            data: as one row.
            places: where the bytes of each pixel begin.
            steps: how many, at most `steps_at_once`.
            more: whether there is data for as many as that, whatever it is.
        """

    @abstractmethod
    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        """Sums with the products of a step.

        Args:
            sums: int32 [lanes], a register of them.
            data: as `steps_of` gives it.
            weights: int8 [lanes · 4], those of the register.
        """

    @abstractmethod
    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        """What `add_products` takes of 4 rows of 16 channels: in each lane the 4 bytes of a channel.

        Args:
            rows: 16 bytes each.
        """

    @property
    def interleaves_some(self) -> bool:
        """Whether some of the vectors that `interleaved` gives take as few instructions each as all do."""
        return False

    @property
    def looked_up_at_once(self) -> int:
        """Bytes that `looked_up` takes; 1 where the CPU looks up one after the other."""
        return 1

    def looked_up(self, table: Sequence[tirx.Expr], places: tirx.Expr) -> tirx.Expr:
        """Entries of a table of 256 bytes, which is given in vectors of as many as there are places."""
        raise NotImplementedError

    @abstractmethod
    def requantised(self, products: Sequence[tirx.Expr], bounds: Sequence[tirx.Expr]) -> tirx.Expr:
        """`clamp(rint(product) + zero point)` of four vectors as one of bytes, as the data is stored.

        Args:
            products: float32 [lanes] each.
            bounds: float32: the zero point, the least and the largest result, from 0 to 255.
        """


def _call(dtype: str, name: str, *arguments: tirx.Expr) -> tirx.Expr:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


@dataclass(frozen=True)
class _Avx(IntegerVectors):
    """What AVX-512 and AVX2 have in common: vectors of parts of 128 bits, to which packing keeps."""

    def steps_of(self, data: tirx.Var, places: Sequence[tirx.Expr], steps: int, more: bool) -> list[tirx.Expr]:
        (place,) = places
        read = [T.reinterpret("int32", data[T.ramp(place + self.step * step, 1, self.step)]) for step in range(steps)]
        return [T.bind(T.broadcast(one, self.lanes)) for one in read]

    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        every = 16
        orders = [
            [every * row + channel for channel in range(first, first + self.lanes) for row in range(STEP)]
            for first in range(0, every, self.lanes)
        ]
        return [T.bind(T.Shuffle(list(rows), [T.int32(place) for place in order])) for order in orders]

    @property
    def _name(self) -> str:
        return "avx512" if self.lanes == 16 else "avx2"

    @property
    def _suffix(self) -> str:
        return ".512" if self.lanes == 16 else ""

    def requantised(self, products: Sequence[tirx.Expr], bounds: Sequence[tirx.Expr]) -> tirx.Expr:
        # Clamped from above before it is rounded: what cannot be converted to int32 is at its least value then. Packing
        # clamps at the least byte, and the lower bound is met by the bytes.
        zero, least, most = bounds
        upper = T.broadcast(most - zero, self.lanes)
        integers = [T.bind(self._rounded(tirx.min(product, upper))) for product in products]
        lower = T.broadcast(T.cast(least, self.data_type), 4 * self.lanes)
        return tirx.max(self._narrowed(integers, T.cast(zero, "int16")), lower)

    def _rounded(self, values: tirx.Expr) -> tirx.Expr:
        """float32 [lanes] as int32, ties to even."""
        dtype = f"int32x{self.lanes}"
        if self.lanes == 16:
            every, current = T.int16(-1), T.int32(4)
            zeros = T.broadcast(T.int32(0), self.lanes)
            return _call(dtype, "llvm.x86.avx512.mask.cvtps2dq.512", values, zeros, every, current)
        return _call(dtype, "llvm.x86.avx.cvt.ps2dq.256", values)

    def _narrowed(self, sums: Sequence[tirx.Expr], zero: tirx.Expr) -> tirx.Expr:
        """Four vectors of int32, plus a zero point, as one of bytes, what is too large or small clamped."""
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


@dataclass(frozen=True)
class _Vbmi(_Vnni):
    """With `vpermi2b` (or `vpermt2b`), which looks up 64 bytes in 128."""

    @property
    def looked_up_at_once(self) -> int:
        return 64

    def looked_up(self, table: Sequence[tirx.Expr], places: tirx.Expr) -> tirx.Expr:
        lower, upper = (
            _call("uint8x64", "llvm.x86.avx512.vpermi2var.qi.512", one, places, other)
            for one, other in (table[:2], table[2:])
        )
        return tirx.Select(places < T.broadcast(T.uint8(128), 64), lower, upper)


@dataclass(frozen=True)
class _Neon(IntegerVectors):
    """What all arm64 CPUs have: data is signed, as weights are; `tbl` and `tbx` look up 16 bytes in 64."""

    @property
    def looked_up_at_once(self) -> int:
        return 16

    def looked_up(self, table: Sequence[tirx.Expr], places: tirx.Expr) -> tirx.Expr:
        # `tbx` keeps what it was given where a place is outside of its 64.
        found = _call("int8x16", "llvm.aarch64.neon.tbl4", *table[:4], places)
        for first in range(4, len(table), 4):
            own = places - T.broadcast(tirx.const(16 * first - (256 if first > 7 else 0), "int8"), 16)
            found = _call("int8x16", "llvm.aarch64.neon.tbx4", found, *table[first : first + 4], own)
        return found

    @property
    def data_type(self) -> str:
        return "int8"

    def requantised(self, products: Sequence[tirx.Expr], bounds: Sequence[tirx.Expr]) -> tirx.Expr:
        # Each step saturates, so that both bounds are met by the bytes.
        zero, least, most = (self.stored(bound) for bound in bounds)
        integers = [_call("int32x4", "llvm.aarch64.neon.fcvtns", product) for product in products]
        shorts = [_call("int16x4", "llvm.aarch64.neon.sqxtn", vector) for vector in integers]
        zeros = T.broadcast(T.cast(zero, "int16"), 8)
        bytes_ = [
            _call("int8x8", "llvm.aarch64.neon.sqxtn", _call("int16x8", "llvm.sadd.sat", _joined(pair), zeros))
            for pair in (shorts[:2], shorts[2:])
        ]
        lower, upper = (T.broadcast(T.cast(bound, "int8"), 16) for bound in (least, most))
        return tirx.min(tirx.max(_joined(bytes_), lower), upper)

    @property
    def interleaves_some(self) -> bool:
        return True

    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        def zipped(pair: Sequence[tirx.Expr], size: int) -> list[tirx.Expr]:
            """Values of so many bytes, of one and the other in turn: the first 16 bytes of such and the last."""
            half = 16 // size // 2
            order = [
                [
                    vector * 16 + (first + place) * size + byte
                    for place in range(half)
                    for vector in (0, 1)
                    for byte in range(size)
                ]
                for first in (0, half)
            ]
            return [T.bind(T.Shuffle(list(pair), [T.int32(place) for place in one])) for one in order]

        upper, lower = zipped(rows[:2], 1), zipped(rows[2:], 1)
        return [vector for pair in zip(upper, lower, strict=True) for vector in zipped(pair, 2)]


@dataclass(frozen=True)
class _Sdot(_Neon):
    """`sdot`: products of int8 summed up in int32, by one lane of the data."""

    @property
    def steps_at_once(self) -> int:
        return 4

    def most_pixels(self, vectors: int, steps: int) -> int:
        # Data stays in registers for 4 steps. Short sums are written out, and bytes are made among their steps.
        beside = 1 if steps > _WRITTEN_OUT else 5
        return max(1, (self.registers - vectors - beside) // (vectors + 1))

    def step_cycles(self, pixels: int, vectors: int) -> float:
        # Of tiles alike the one with fewer loads, of data and of weights.
        return super().step_cycles(pixels, vectors) + (pixels + vectors) / 1000

    def steps_of(self, data: tirx.Var, places: Sequence[tirx.Expr], steps: int, more: bool) -> list[tirx.Expr]:
        (place,) = places
        if steps == 1 or (steps < self.steps_at_once and not more):
            lanes = [T.reinterpret("int32", data[T.ramp(place + STEP * step, 1, STEP)]) for step in range(steps)]
        else:
            read = T.bind(T.reinterpret("int32x4", data[T.ramp(place, 1, 16)]))
            lanes = [T.Shuffle([read], [T.int32(step)]) for step in range(steps)]
        return [T.reinterpret("int8x16", T.broadcast(lane, 4)) for lane in lanes]

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        return _call("int32x4", "llvm.aarch64.neon.sdot", sums, weights, data)

    def requantised(self, products: Sequence[tirx.Expr], bounds: Sequence[tirx.Expr]) -> tirx.Expr:
        # A conversion takes longer than a sum, and putting bytes together does not. Once it is clamped, a product is
        # rounded by a sum whose last bit is worth 1: its last byte is the integer's.
        zero, least, most = bounds
        lower, upper = (T.broadcast(bound - zero, 4) for bound in (least, most))
        rounding = T.broadcast(T.float32(1.5 * 2**23), 4)
        integers = []
        for product in products:
            clamped = _call("float32x4", "llvm.aarch64.neon.fmin", product, upper)
            clamped = _call("float32x4", "llvm.aarch64.neon.fmax", clamped, lower)
            integers.append(T.bind(T.reinterpret("int16x8", clamped + rounding)))
        shorts = [T.bind(_of_even_places(pair)) for pair in (integers[:2], integers[2:])]
        bytes_ = _of_even_places([T.reinterpret("int8x16", vector) for vector in shorts])
        return bytes_ + T.broadcast(T.cast(self.stored(zero), "int8"), 16)


@dataclass(frozen=True)
class _Smmla(_Neon):
    """`smmla`: 8 bytes of two pixels times 8 weights of two channels, four sums in a register.

    A step's sums of four channels are two registers, each with two channels of the first pixel and then of the second.
    """

    by_lane: _Sdot

    @property
    def of_four_bytes(self) -> IntegerVectors:
        return self.by_lane

    @property
    def step(self) -> int:
        return 8

    @property
    def pixels(self) -> int:
        return 2

    @property
    def steps_at_once(self) -> int:
        return 2

    def most_pixels(self, vectors: int, steps: int) -> int:
        # Data stays in registers for 2 steps. Of weights there are some, or those of a step where more pixels use them.
        few = self.registers - 6 >= 2 * vectors + 2
        return max(2 if few else 1, (self.registers - 2 * vectors) // (vectors + 1) // 2 * 2)

    def step_cycles(self, pixels: int, vectors: int) -> float:
        pairs = -(-pixels // 2)
        return max(pairs * 2 * vectors + pairs, pairs + 2 * vectors) / 2

    def begun(self, bias: tirx.Expr) -> list[tirx.Expr]:
        return [T.bind(T.Shuffle([bias], [T.int32(place) for place in (*pair, *pair)])) for pair in ((0, 1), (2, 3))]

    def by_pixel(self, sums: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        return [_of_both(sums, pixel, 2) for pixel in range(2)]

    def steps_of(self, data: tirx.Var, places: Sequence[tirx.Expr], steps: int, more: bool) -> list[tirx.Expr]:
        size = steps * self.step
        read = [T.bind(data[T.ramp(place, 1, size)]) for place in places]
        return [T.bind(_of_both(read, step, self.step)) for step in range(steps)]

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        return _call("int32x4", "llvm.aarch64.neon.smmla", sums, data, weights)

    def requantised(self, products: Sequence[tirx.Expr], bounds: Sequence[tirx.Expr]) -> tirx.Expr:
        return self.by_lane.requantised(products, bounds)

    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        raise NotImplementedError("a step of rows of channels is of one pixel: `of_four_bytes`")


def _of_both(vectors: Sequence[tirx.Expr], number: int, size: int) -> tirx.Expr:
    """The how manieth so many values of one vector, and those of another."""
    lanes = vectors[0].ty.dtype.lanes
    places = [vector * lanes + number * size + place for vector in range(2) for place in range(size)]
    return T.Shuffle(list(vectors), [T.int32(place) for place in places])


@dataclass(frozen=True)
class _WideningNeon(_Neon):
    """`smull` and `saddlp`: two products of int8 fit into int16, as no weight is -128.

    A step's weights are those of two bytes for each lane, and then those of the other two.
    """

    def lane_and_byte(self, place: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        return place % 8 // 2, place // 8 * 2 + place % 2

    def steps_of(self, data: tirx.Var, places: Sequence[tirx.Expr], steps: int, more: bool) -> list[tirx.Expr]:
        (place,) = places
        read = [T.reinterpret("int32", data[T.ramp(place + STEP * step, 1, STEP)]) for step in range(steps)]
        return [T.bind(T.reinterpret("int8x16", T.broadcast(four, 4))) for four in read]

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        def products(half: int) -> tirx.Expr:
            # Of each four bytes of data two, and so many weights.
            pairs = [T.int32(4 * lane + 2 * half + byte) for lane in range(4) for byte in (0, 1)]
            eight = [T.int32(8 * half + place) for place in range(8)]
            return _call("int16x8", "llvm.aarch64.neon.smull", T.Shuffle([weights], eight), T.Shuffle([data], pairs))

        return sums + _call("int32x4", "llvm.aarch64.neon.saddlp", products(0) + products(1))


def _of_even_places(vectors: Sequence[tirx.Expr]) -> tirx.Expr:
    lanes = sum(vector.ty.dtype.lanes for vector in vectors)
    return T.Shuffle(list(vectors), [T.int32(place) for place in range(0, lanes, 2)])


def _joined(vectors: Sequence[tirx.Expr]) -> tirx.Expr:
    lanes = sum(vector.ty.dtype.lanes for vector in vectors)
    return T.Shuffle(list(vectors), [T.int32(place) for place in range(lanes)])


@dataclass(frozen=True)
class _Avx2OfBytes(_Avx):
    """`vpmaddwd`: products of int16, to which bytes are widened, so that nothing saturates.

    Of four bytes of data the two at even places and the two at odd ones are multiplied, by weights in this order.
    """

    def lane_and_byte(self, place: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        return place % 16 // 2, place // 16 + place % 2 * 2

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        shorts = T.reinterpret("int16x16", data)
        even = T.bitwise_and(shorts, T.broadcast(T.int16(255), 16))
        odd = T.reinterpret("int16x16", T.shift_right(T.reinterpret("uint16x16", data), T.broadcast(T.uint16(8), 16)))
        for half, values in enumerate((even, odd)):
            of_half = T.Shuffle([weights], [T.int32(16 * half + place) for place in range(16)])
            sums = _widened_products(sums, values, of_half)
        return sums


@dataclass(frozen=True)
class _Avx2(_Avx):
    """`vpmaddwd` of two values for each lane, of data that copying widened."""

    of_bytes: _Avx2OfBytes

    @property
    def of_four_bytes(self) -> IntegerVectors:
        return self.of_bytes

    @property
    def read_type(self) -> str:
        return "int16"

    @property
    def latency(self) -> int:
        return 1

    @property
    def step(self) -> int:
        return 2

    @property
    def packed_step(self) -> int:
        return STEP

    def lane_and_byte(self, place: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        return place % 16 // 2, place // 16 * 2 + place % 2

    def most_pixels(self, vectors: int, steps: int) -> int:
        # Beside weights two registers, of data and of products.
        return max(1, (self.registers - vectors - 2) // vectors)

    def step_cycles(self, pixels: int, vectors: int) -> float:
        # Three ports take products, sums and what widens weights, and four instructions are decoded.
        operations = 2 * pixels * vectors
        return max((operations + vectors) / 3, (operations + pixels + 2 * vectors + 2) / 4)

    def add_products(self, sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
        return _widened_products(sums, T.reinterpret("int16x16", data), weights)

    def interleaved(self, rows: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        raise NotImplementedError("a step of rows of channels is of bytes: `of_four_bytes`")


def _widened_products(sums: tirx.Expr, data: tirx.Expr, weights: tirx.Expr) -> tirx.Expr:
    """int32 [8], to which products of int16 [16] and int8 [16] are added, two of them each."""
    return sums + _call("int32x8", "llvm.x86.avx2.pmadd.wd", data, T.cast(weights, "int16x16"))


def integer_vectors(target: Target) -> IntegerVectors | None:
    """The instructions of a target's CPU; None if it has none that are known here."""
    if target_has_features("avx512vnni", target) and target_has_features("avx512bw", target):
        return (_Vbmi if target_has_features("avx512vbmi", target) else _Vnni)(16, 32, "vpdpbusd")
    if target_has_features("avxvnni", target):
        return _Vnni(8, 16, "vpdpbusd")
    if target_has_features("avx2", target):
        return _Avx2(8, 16, "vpmaddwd", _Avx2OfBytes(8, 16, "vpmaddwd"))
    if "aarch64" in str(target.attrs.get("mtriple", "")):
        return _neon(target)
    return None


def _neon(target: Target) -> IntegerVectors:
    if not target_has_features("dotprod", target):
        return _WideningNeon(4, 32, "smull")
    by_lane = _Sdot(4, 32, "sdot")
    return _Smmla(4, 32, "smmla", by_lane) if target_has_features("i8mm", target) else by_lane
