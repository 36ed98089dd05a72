"""Convolutions in NHWC with HWIO weights as matrix products whose tiles go through shared memory.

Rows are output pixels, columns output channels, and the depth goes over the window and the input channels.
"""

import math

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents
from tvm_passes.relax.schedules.base.convolution_match import input_shape, match_convolution
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.gpu.convolution import flatten_pixels
from tvm_passes.relax.schedules.gpu.elementwise import bind_elementwise
from tvm_passes.relax.schedules.gpu.limits import gpu_limits
from tvm_passes.relax.schedules.gpu.staged_tiles import FEWEST_ROWS, Product, StagedTile, stage, staged_tiles


class StagedConvolution(DesignSpaceRule[FusedOperator, StagedTile]):
    """Matches one NHWC convolution without groups, with or without padding in front and elementwise operators behind.

    Of few pixels, or channels that are no vectors, it leaves a convolution to other rules.
    """

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the convolution, what follows it fused."""
        matched = match_convolution(func, target, device="gpu")
        if matched is None or not gpu_limits(target).staged:
            return None
        schedule, operator = matched
        product = _product(schedule, operator)
        fits = product.rows >= FEWEST_ROWS and input_shape(schedule, operator)[3] == product.channels
        return matched if fits and self.ways(schedule, operator, target) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[StagedTile]:
        """The `staged_tiles` of the convolution's shape."""
        dtype = widest_type(schedule, operator.reduction)
        return staged_tiles(_product(schedule, operator), gpu_limits(target), dtype)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: StagedTile, target: Target) -> None:
        """Computes a tile a block."""
        limits, dtype = gpu_limits(target), widest_type(schedule, operator.reduction)
        data = flatten_pixels(schedule, operator, way.block_rows, groups=1)
        assert data is not None  # With one group there is a common copy of the inputs.
        stage(schedule, operator, data, way, limits, dtype)
        for block in operator.followers:
            bind_elementwise(schedule, block, limits)


def _product(schedule: Schedule, operator: FusedOperator) -> Product:
    *pixels, channels, height, width, depth = extents(schedule, operator.reduction)
    return Product(math.prod(pixels), channels, height * width, width, depth)
