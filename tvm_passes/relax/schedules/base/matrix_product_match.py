"""What a matrix product [N, I] × [I, O] is, or a batch of them."""

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import FusedOperator, match_reduction
from tvm_passes.relax.schedules.base.precision import is_modelled


def match_matrix_product(
    func: tirx.PrimFunc, target: Target, batches: bool = False, device: str = "cpu"
) -> tuple[Schedule, FusedOperator] | None:
    """A schedule of a matrix product, what follows it fused; None if the function is another, or for another device.

    Its axes are (b…, n, o, i). It reads [b…, n, i] and [b…, i, o], or [i, o] for all of a batch. Nothing lies before
    it, and nothing larger behind it. All is of one type for which the models of schedules hold (`is_modelled`).

    Args:
        func, target, device: as `static_schedule`.
        batches: whether it may have axes b.
    """
    matched = match_reduction(func, target, "S{2,}R" if batches else "SSR", device)
    if matched is None:
        return None
    schedule, operator = matched
    alone = not operator.producers and not operator.followers and is_modelled(schedule, operator.reduction)
    return matched if alone and _is_matrix_product(schedule, operator.reduction) else None


def _is_matrix_product(schedule: Schedule, block: SBlockRV) -> bool:
    statement = schedule.get(block)
    *batch, row, column, depth = (axis.var for axis in statement.iter_vars)
    wanted = ([[*batch, row, depth], [*second, depth, column]] for second in (batch, []))
    found = [[axis.min for axis in read.region] for read in statement.reads]
    return any(tvm_ffi.structural_equal(found, reads) for reads in wanted)
