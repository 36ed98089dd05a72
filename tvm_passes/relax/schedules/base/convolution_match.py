"""What a convolution in NHWC is, for schedules of every class of devices."""

from tvm import tirx
from tvm.ir import TensorRegion
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION
from tvm_passes.relax.schedules.base.blocks import FusedOperator, extents, match_reduction
from tvm_passes.relax.schedules.base.precision import is_modelled


def match_convolution(
    func: tirx.PrimFunc, target: Target, device: str = "cpu"
) -> tuple[Schedule, FusedOperator] | None:
    """A schedule of a convolution, what follows it fused; None if the function is another, or for another device.

    Its axes are (n, y, x, o, ky, kx, i). It writes at [n, y, x, o] and reads weights at [ky, kx, i, o], or is marked as
    one whose weights are packed. All is of one type for which the models of schedules hold (`is_modelled`).
    """
    matched = match_reduction(func, target, "SSSSRRR", device)
    if matched is None:
        return None
    schedule, operator = matched
    fits = _is_convolution(schedule, operator.reduction) and is_modelled(schedule, operator.reduction)
    return matched if fits else None


def _is_convolution(schedule: Schedule, block: SBlockRV) -> bool:
    statement = schedule.get(block)
    n, y, x, o, ky, kx, i = (axis.var for axis in statement.iter_vars)

    def reads_or_writes(region: TensorRegion, wanted: list[tirx.Var]) -> bool:
        found = [axis.min for axis in region.region]
        return len(found) == len(wanted) and all(one.same_as(other) for one, other in zip(found, wanted, strict=True))

    return (
        len(statement.reads) == 2
        and reads_or_writes(statement.writes[0], [n, y, x, o])
        and (ANNOTATION in statement.annotations or reads_or_writes(statement.reads[1], [ky, kx, i, o]))
    )


def is_depthwise(schedule: Schedule, operator: FusedOperator) -> bool:
    """Whether each output channel of a convolution reads the input channel of the same number."""
    channels, *_window, depth = extents(schedule, operator.reduction)[3:]
    return depth == 1 and channels > 1 and input_shape(schedule, operator)[3] == channels


def input_shape(schedule: Schedule, operator: FusedOperator) -> list[int]:
    """The shape of what a convolution reads: batch, height and width with their padding, and channels of all groups."""
    return [int(extent) for extent in schedule.get(operator.reduction).reads[0].source.shape]
