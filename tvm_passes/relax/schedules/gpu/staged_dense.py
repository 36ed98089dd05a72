"""Dense layers of many rows as matrix products whose tiles go through shared memory."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.matrix_product_match import match_matrix_product
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.gpu.limits import gpu_limits
from tvm_passes.relax.schedules.gpu.staged_tiles import FEWEST_ROWS, Product, StagedTile, stage, staged_tiles


class StagedDense(DesignSpaceRule[FusedOperator, StagedTile]):
    """Matches a matrix product [N, I] × [I, O] with elementwise operators behind it, if N fills tiles."""

    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, FusedOperator] | None:
        """A schedule of the product, what follows it fused."""
        matched = match_matrix_product(func, target, device="gpu")
        return matched if matched is not None and self.ways(*matched, target) else None

    def ways(self, schedule: Schedule, operator: FusedOperator, target: Target) -> list[StagedTile]:
        """The `staged_tiles` of the product's shape whose rows divide its rows; none of few rows."""
        limits, dtype = gpu_limits(target), widest_type(schedule, operator.reduction)
        rows, columns, depth = extents(schedule, operator.reduction)
        if not limits.staged or rows < FEWEST_ROWS:
            return []
        product = Product(rows, columns, window=1, window_row=1, channels=depth)
        return staged_tiles(product, limits, dtype, whole=True)

    def apply_way(self, schedule: Schedule, operator: FusedOperator, way: StagedTile, target: Target) -> None:
        """Computes a tile a block."""
        data = schedule.cache_read(operator.reduction, 0, "shared")
        stage(schedule, operator, data, way, gpu_limits(target), widest_type(schedule, operator.reduction))
