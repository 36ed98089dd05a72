"""Linear layers with packed weights, [N, I] × [O / lanes, I, lanes]: 1×1 convolutions of N pixels."""

import dataclasses

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION
from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents, match_reduction
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.precision import is_modelled, widest_type
from tvm_passes.relax.schedules.cpu.convolution import compute_tiles
from tvm_passes.relax.schedules.cpu.lanes import steps_at_once
from tvm_passes.relax.schedules.cpu.tile_model import Tiling, product_shape, tilings
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit


class PackedProduct(DesignSpaceRule[FusedOperator, Tiling]):
    """Matches a product with packed weights, with elementwise operators behind it."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the product, what follows it fused."""
        matched = match_reduction(func, target, "SSR")
        if matched is None:
            return None
        schedule, operator = matched
        is_packed = ANNOTATION in schedule.get(operator.reduction).annotations
        alone = not operator.producers and not operator.followers
        return matched if is_packed and alone and is_modelled(schedule, operator.reduction) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[Tiling]:
        """The `tilings` of a convolution of as many pixels and channels."""
        rows, outputs, inputs = extents(schedule, operator.reduction)
        dtype, unit = widest_type(schedule, operator.reduction), vector_unit(target)
        if steps_at_once(schedule, operator.reduction, unit) == 1:
            unit = dataclasses.replace(unit, by_lane=False)
        lanes = int(schedule.get(operator.reduction).annotations[ANNOTATION])
        return tilings(product_shape(rows, outputs, inputs, dtype), 1, unit, lanes)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: Tiling, target: Target) -> None:
        """Computes tile by tile."""
        compute_tiles(schedule, operator, way, vector_unit(target))
