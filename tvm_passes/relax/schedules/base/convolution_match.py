"""What a convolution in NHWC is, for schedules of every class of devices."""

from tvm import tirx
from tvm.ir import TensorRegion
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from tvm_passes.relax.kernels.packed_convolution import ANNOTATION


def is_convolution(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block with axes (n, y, x, o, ky, kx, i) writes at [n, y, x, o] and reads weights at [ky, kx, i, o].

    Or it is marked as one whose weights are packed.
    """
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
