"""Which tiles of a convolution a CPU computes fastest: an analytical model, to rank the ways that a tuner measures.

Its constants were tried on an AMD Zen 4 while the rules were written, those of AVX-512 on an Intel Cascade Lake.
`.venv/bin/python benchmarks/convolutions.py` measures convolutions whose first way each of them decides: run it before
and after a change (it compiles with its own checkout), and compare `ms a call`. Where another network shows more of a
constant, it is named beside it.
"""

import functools
import math
from dataclasses import dataclass

from tvm_passes.relax.schedules.base.blocks import smallest_divisor
from tvm_passes.relax.schedules.base.precision import value_bytes
from tvm_passes.relax.schedules.cpu.vector_unit import LINE_BYTES, WAY_BYTES, VectorUnit, vector_widths

_NEAR = 16 << 10
"""Bytes of weights that stay in a core's first-level cache beside what streams through (`--network mobilenet_v2`)."""
NEARBY = 144 << 10
"""Bytes that stay in its second-level cache beside what streams through."""
_FAR = 0.9
"""The speed of a convolution that reads its map from far for every tile of channels, by one that need not."""
_UNEVEN = 0.99
"""The speed of tiles of which the last runs over the end of the map, which takes a second version of the code."""
_FEW_TILES, _ASKED = 16, 80 << 10
"""Tiles of one block of weights that are few, and bytes of such a block that fit beside the one in use."""
_FILLED_GAIN = 1.08
"""How much quicker a convolution must be with more output channels than it has: only its map can be shared out then."""
TASKS = 8
"""Of each core at least, where a map can be cut: a core that is slowed to half then makes the others wait little."""
_CONFLICTS = 1.15
"""How much longer a tile takes whose inputs push one another out of the first-level cache (docs/peers/avx512.md)."""
_MOST_PIXELS, _MOST_VECTORS = 14, 5
"""Of a tile, to keep the ways few: more load less a product, but that is little by then."""


@dataclass(frozen=True)
class Shape:
    """What matters of a convolution's shape.

    Attributes:
        pixels: of the output, of all images.
        channels: of the output, of all groups.
        depth: products that are summed for each value of the output.
        pixel_bytes: of the input, for each pixel of the output.
        apart: bytes from what a pixel of the output reads to what the next in its row does (`bytes_apart`).
        dtype: of inputs, weights and results.
    """

    pixels: int
    channels: int
    depth: int
    pixel_bytes: int
    apart: int
    dtype: str


@dataclass(frozen=True)
class Tiling:
    """One way to compute a convolution.

    Attributes:
        pixels, channels: of a tile of the output, which is held in registers.
        cuts: into how many tasks the tiles of pixels are shared out; a task computes one tile of channels.
        copied: a task copies its weights together first.
        pixels_first: a core computes all channels of its part of the map, instead of all of the map for its channels.
    """

    pixels: int
    channels: int
    cuts: int
    copied: bool
    pixels_first: bool = False


def asking_pays(steps: int, weight_bytes: int) -> bool:
    """Whether so many tiles that use the same weights are few enough for the wait for these to weigh much.

    Each of the tiles asks for all of the next weights; these must not push out what is in use.
    """
    return steps <= _FEW_TILES and weight_bytes <= _ASKED


def tilings(
    shape: Shape,
    groups: int,
    unit: VectorUnit,
    lanes: int | None = None,
    *,
    channels_apart: bool = True,
    batch: int = 1,
) -> list[Tiling]:
    """The ways to compute a convolution that are worth a measurement, the one that is likely fastest first.

    Args:
        shape: of the convolution.
        groups: of the convolution.
        unit: of the CPU.
        lanes: output channels that packed weights have together; None where they are not packed.
        channels_apart: whether tiles of channels can be tasks of their own.
        batch: how many of this shape, each with weights of its own, are computed in the same loop.
    """

    def channel_tasks(tile_channels: int) -> int:
        return batch * (shape.channels // tile_channels if channels_apart else 1)

    def by_channels(tile_pixels: int, tile_channels: int, tasks: int, copied: bool) -> Tiling:
        # Maps are cut only as far as it takes for every core to have so many tasks.
        wanted = -(-tasks * unit.cores // channel_tasks(tile_channels))
        cuts = smallest_divisor(-(-shape.pixels // tile_pixels), wanted)
        return Tiling(tile_pixels, tile_channels, cuts, copied, pixels_first=not channels_apart)

    def by_pixels(tile_pixels: int, tile_channels: int, limit: int) -> Tiling | None:
        # A part of the map stays near while all channels of it are computed.
        tiles = -(-shape.pixels // tile_pixels)
        cuts = smallest_divisor(tiles, -(-shape.pixels * shape.pixel_bytes // limit))
        part = tiles // cuts * tile_pixels * shape.pixel_bytes
        tasks = cuts * channel_tasks(tile_channels)
        enough = cuts > 1 and tasks >= 4 * unit.cores and limit // 16 <= part <= limit
        return Tiling(tile_pixels, tile_channels, cuts, False, pixels_first=True) if enough else None

    def by_cores(tile_pixels: int, tile_channels: int) -> Tiling | None:
        # Every core keeps to its part of the map: what it reads, the operator before may have left in its cache.
        cuts = unit.cores
        even = cuts > 1 and shape.pixels % (tile_pixels * cuts) == 0
        return Tiling(tile_pixels, tile_channels, cuts, False, pixels_first=True) if even else None

    ranked = ranked_tiles(shape.pixels, shape.channels // groups, shape.depth, unit, shape.dtype, shape.apart)
    tiles = [tile for tile, _ in ranked if lanes in (None, tile[1])][:16]
    if lanes is None:
        ways = [
            by_channels(*tile, tasks, copied) for tasks, copied in ((4, True), (1, True), (4, False)) for tile in tiles
        ]
        return list(dict.fromkeys(ways))
    # It pays where the weights stay near from part to part, and the map would not from tile to tile of channels.
    weight_bytes = value_bytes(shape.dtype) * shape.depth * shape.channels
    pays = weight_bytes <= 2 * NEARBY < shape.pixels * shape.pixel_bytes
    near = {tile: way for tile in tiles if pays and (way := by_pixels(*tile, NEARBY)) is not None}
    speeds = dict(ranked)
    # Where no tile's map can stay near, all are as far.
    tiles.sort(key=lambda tile: speeds[tile] * (1.0 if tile in near else _FAR), reverse=True)
    found = [near.get(tile, by_channels(*tile, TASKS, False)) for tile in tiles]
    found += [way for limit in (NEARBY, NEARBY // 4, 2 * NEARBY) for tile in tiles if (way := by_pixels(*tile, limit))]
    found += [way for tile in tiles if (way := by_cores(*tile))]
    found += [by_channels(*tile, tasks, False) for tasks in (TASKS, 4, 1, 16) for tile in tiles]
    return list(dict.fromkeys(found))


def filled_channels(
    pixels: int, channels: int, depth: int, unit: VectorUnit, dtype: str, apart: int = LINE_BYTES
) -> int | None:
    """To how many output channels it pays to fill up those of one group; None where it does not.

    It pays where only bad tiles divide them, as of 208 = 16 · 13. One pixel uses each weight once, and waits for them;
    where inputs are read in vectors, the vectors of weights are narrow enough for any number. A core computes all of
    filled-up channels for its part of the map, and fetches weights that its cache does not hold for each part anew:
    then it pays for narrow vectors alone.

    Args:
        pixels, channels, depth, unit, dtype, apart: as `ranked_tiles`.
    """
    lanes = unit.lanes(dtype)
    if unit.by_lane or channels < lanes or pixels == 1:
        return None

    @functools.cache
    def best(computed: int) -> tuple[tuple[int, int], float]:
        return ranked_tiles(pixels, computed, depth, unit, dtype, apart)[0]

    def cycles(computed: int) -> float:
        return pixels * computed * depth / best(computed)[1]

    (_, tile_channels), _ = best(channels)
    are_far = 0 < unit.cache_bytes < value_bytes(dtype) * channels * depth
    if are_far and vector_widths(tile_channels, unit, dtype)[0] == lanes:
        return None
    whole = -(-channels // lanes) * lanes
    filled = min(range(whole, whole + _MOST_VECTORS * lanes, lanes), key=cycles)
    return filled if filled > channels and _FILLED_GAIN * cycles(filled) < cycles(channels) else None


def ranked_tiles(
    pixels: int, channels: int, depth: int, unit: VectorUnit, dtype: str, apart: int = LINE_BYTES
) -> list[tuple[tuple[int, int], float]]:
    """How many output pixels × output channels to hold in registers, best first, and what to think of each.

    The channels are a divisor of the axis, because a vector with a bounds check is slow. The best tile does most useful
    multiply-adds a cycle. Enough registers remain for weights and an input, or LLVM spills accumulators; where inputs
    are read in vectors for one input of each pixel, and for one more that LLVM asks for.

    Args:
        pixels, channels: of the output.
        depth: products that are summed for each value of it.
        unit: of the CPU.
        dtype: of inputs, weights and results.
        apart: as of a `Shape`.
    """

    def speed(tile_pixels: int, tile_channels: int) -> float:
        widths = vector_widths(tile_channels, unit, dtype)
        weight_bytes = value_bytes(dtype) * tile_channels
        # Weights of all steps that do not stay in the first-level cache arrive slower.
        rate = unit.near_rate if weight_bytes * depth <= _NEAR else unit.far_rate

        def cycles(pixels: int) -> float:
            if unit.by_lane:
                return by_lane_cycles(pixels, tile_channels, unit, widths[0])
            loads = pixels + len(widths)
            computing = max(pixels * len(widths) / unit.products, loads / unit.loads, unit.latency)
            if _lines_of_a_set(pixels, apart) > unit.near_ways:
                computing *= _CONFLICTS
            return max(computing, weight_bytes / rate) + value_bytes(dtype) * pixels / unit.input_rate

        # What runs over the end is split off, and takes less.
        tiles, rest = divmod(pixels, tile_pixels)
        first = cycles(tile_pixels)
        time = tiles * first + (cycles(rest) if rest else 0)
        # The first tile waits for the weights, which no inference finds in a cache of the core.
        time += max(0, weight_bytes / unit.first_rate - first)
        even = _UNEVEN if rest else 1.0
        return pixels * tile_channels / time * even + tile_pixels * len(widths) / 1000

    def fits(tile_pixels: int, vectors: int) -> bool:
        inputs = tile_pixels if unit.by_lane else 1
        return tile_pixels * vectors + vectors + inputs <= unit.registers - unit.by_lane

    candidates = [
        (tile_pixels, tile_channels)
        for tile_channels in range(1, min(channels, _MOST_VECTORS * unit.lanes(dtype)) + 1)
        if channels % tile_channels == 0
        for vectors in [len(vector_widths(tile_channels, unit, dtype))]
        for tile_pixels in range(1, min(pixels, _MOST_PIXELS) + 1)
        if tile_pixels == 1 or fits(tile_pixels, vectors)
    ]
    speeds = {tile: speed(*tile) for tile in candidates}
    return sorted(speeds.items(), key=lambda one: one[1], reverse=True)


def product_shape(rows: int, outputs: int, inputs: int, dtype: str) -> Shape:
    """The shape of a matrix product, whose rows are pixels that lie one behind the other."""
    row_bytes = value_bytes(dtype) * inputs
    return Shape(rows, outputs, inputs, row_bytes, row_bytes, dtype)


def bytes_apart(window: tuple[int, ...], stride: int, channels: int, dtype: str) -> int:
    """`Shape.apart` of a convolution of so many input channels.

    Of windows of several pixels a line: what was measured of them is explained by weights alone.
    """
    return value_bytes(dtype) * stride * channels if math.prod(window) == 1 else LINE_BYTES


def _lines_of_a_set(pixels: int, apart: int) -> int:
    """How many of the lines in which pixels so many bytes apart lie must share a set of the first-level cache."""
    return -(-pixels * math.gcd(apart, WAY_BYTES) // WAY_BYTES)


def by_lane_cycles(tile_pixels: int, tile_channels: int, unit: VectorUnit, lanes: int) -> float:
    """Cycles of a step of a tile whose inputs are read in vectors of `lanes` steps."""
    vectors = tile_channels // lanes
    products, loads = tile_pixels * vectors, tile_pixels / lanes + vectors
    # One slot for the loop itself, whose four instructions are there once for four steps.
    issued = (products + unit.load_slots * loads + 1) / unit.slots
    return max(products / unit.products, loads / unit.loads, issued, unit.latency)
