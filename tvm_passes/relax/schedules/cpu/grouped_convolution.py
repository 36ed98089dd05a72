"""Convolutions of groups (ResNeXt, RegNet) whose neighbours in a row share inputs; one vector may hold several groups.

Where groups have fewer channels than a vector, each input is multiplied into the outputs of its group alone, so a
vector of inputs has one of each group, and bringing them together takes as long as multiplying by them. It pays as
several neighbours in a row of the output share each such vector. Where a group has a vector or more, an input is one
value for all. Sums and the weights of a window's row stay in registers; the map is read as it lies, as in
`depthwise.py`: all channels of a tile follow each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION, OF_GROUP, OUTPUTS
from tvm_passes.relax.loops.unequal_vectors import in_unequal_vectors
from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents, largest_divisor
from tvm_passes.relax.schedules.base.convolution_match import input_shape, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.cpu.elementwise import schedule_elementwise
from tvm_passes.relax.schedules.cpu.tile_model import TASKS
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit, vector_unit, vector_widths

_PIXELS, _PIXELS_APART = (14, 7, 8, 10, 9, 6, 5, 4), (7, 8, 10, 9, 6, 5, 4, 14)
"""Sums of neighbours in a row that are held in registers, best first; apart: of windows that start at a distance."""
_DTYPE = "float32"  # What weights are packed of.
_FEWEST_OF_GROUP = 4
"""Channels of a group: of fewer, bringing a vector together takes longer than what is multiplied by it."""


def lanes_of_groups(
    inputs: int, outputs: int, groups: int, window: int, stride: int, columns: int, unit: VectorUnit, dtype: str
) -> int | None:
    """How many output channels, of several groups, to hold in a vector; None where one group's fill it better.

    Args:
        inputs: channels of a group.
        outputs: channels of all groups.
        groups: how many there are.
        window, stride: values of a row that a sum reads, and how far the next one's are from these.
        columns: of the result.
        unit: of the CPU.
        dtype: of inputs, weights and results.
    """
    lanes, of_group = unit.lanes(dtype), outputs // groups
    fits = _FEWEST_OF_GROUP <= inputs == of_group < lanes and lanes % of_group == 0
    shared = window > stride and _pixels(columns, stride)
    return lanes if unit.joins_groups and groups > 1 and fits and shared else None


def _pixels(columns: int, stride: int) -> list[int]:
    return [number for number in (_PIXELS if stride == 1 else _PIXELS_APART) if columns % number == 0]


def _has_whole_groups(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> bool:
    """Whether a block of packed weights is all of a group, of a vector and more, whose neighbours share inputs."""
    _, _, columns, _, _, window, inputs = extents(schedule, operator.reduction)
    _, _, width, channels = input_shape(schedule, operator)
    block = schedule.get(operator.reduction).annotations.get(ANNOTATION)
    if not unit.joins_groups or channels == inputs or block != inputs or inputs < unit.lanes(_DTYPE):
        return False
    return window > width // columns and bool(_fitting_pixels(schedule, operator, unit))


def _vectors(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> list[int]:
    """The lengths of the vectors of a block."""
    return vector_widths(int(schedule.get(operator.reduction).annotations[ANNOTATION]), unit, _DTYPE)


def _fitting_pixels(schedule: Schedule, operator: FusedOperator, unit: VectorUnit) -> list[int]:
    """How many neighbours' sums registers hold beside the weights of a window's row and an input, best first."""
    _, _, columns, _, _, window, _ = extents(schedule, operator.reduction)
    vectors = len(_vectors(schedule, operator, unit))
    numbers = _pixels(columns, input_shape(schedule, operator)[2] // columns)
    return [number for number in numbers if (number + window) * vectors < unit.registers]


@dataclass(frozen=True)
class GroupTile:
    """One way to compute such a convolution.

    Attributes:
        rows: of the output, that a task computes.
        pixels: of the output, that are held in registers: neighbours in a row.
    """

    rows: int
    pixels: int


class GroupedConvolution(DesignSpaceRule[FusedOperator, GroupTile]):
    """Matches an NHWC convolution with packed weights of which a block holds all channels of a group, or of several."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target)
        if matched is None:
            return None
        schedule, operator = matched
        joined = OF_GROUP in schedule.get(operator.reduction).annotations
        return matched if joined or _has_whole_groups(schedule, operator, vector_unit(target)) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> Iterator[GroupTile]:
        """Tasks of the most rows of which there are enough for every core, and tiles as they were found quick."""
        _, height, *_ = extents(schedule, operator.reduction)
        unit = vector_unit(target)
        numbers = [largest_divisor(height, max(1, height // tasks)) for tasks in (TASKS * unit.cores, unit.cores)]
        for rows in dict.fromkeys(numbers):
            for pixels in _fitting_pixels(schedule, operator, unit):
                yield GroupTile(rows, pixels)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: GroupTile, target: Target) -> None:
        """Computes row by row, tile by tile and block by block."""
        for block in operator.followers:
            schedule_elementwise(schedule, block, vector_unit(target))
        for block in operator.producers:
            schedule.compute_inline(block)
        marks = schedule.get(operator.reduction).annotations
        n, y, x, o, ky, kx, i = schedule.get_loops(operator.reduction)
        parts, row = schedule.split(y, [None, way.rows])
        tile, pixel = schedule.split(x, [None, way.pixels])
        blocks, vector = schedule.split(o, [None, int(marks[ANNOTATION])])
        schedule.reorder(n, parts, row, tile, blocks, ky, i, kx, pixel, vector)
        schedule.parallel(schedule.fuse(n, parts))
        schedule.reverse_compute_at(operator.output, blocks, preserve_unit_loops=True)
        *_, output_pixel, output_vector = schedule.get_loops(operator.output)
        unrolled = [kx, pixel, output_pixel]
        if OUTPUTS in marks:
            # Each group is stored or not: the last vector has some that are filled up.
            group, output_vector = schedule.split(output_vector, [None, int(marks[OF_GROUP])])
            schedule.reorder(group, output_pixel)
            unrolled.append(group)
        widths = _vectors(schedule, operator, vector_unit(target))
        for loop in (vector, output_vector):
            if widths[-1] < widths[0]:
                in_unequal_vectors(schedule, loop, widths[0])
                continue
            if len(widths) > 1:
                vectors, loop = schedule.split(loop, [None, widths[0]])
                unrolled.append(vectors)
            schedule.vectorize(loop)
        for loop in unrolled:
            schedule.unroll(loop)
        schedule.decompose_reduction(operator.reduction, ky)
