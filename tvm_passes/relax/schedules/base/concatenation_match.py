"""What a concatenation along the channels is, for schedules of every class of devices.

TVM writes it as one loop that asks for every element which input it comes from.
"""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.sym import Analyzer
from tvm.target import Target

from tvm_passes.relax.schedules.base.blocks import axis_kinds, inline_maps, static_schedule


def match_concatenation(
    func: tirx.PrimFunc, target: Target, device: str = "cpu"
) -> tuple[Schedule, SBlockRV, list[int]] | None:
    """A schedule of one concatenation along the last axis, alone or with elementwise operators, which are inlined.

    Returns:
        The schedule, its only block, and the output channels at which inputs begin, 0 included; None if the function is
        another, or for another device.
    """
    schedule = static_schedule(func, target, device=device)
    blocks = inline_maps(schedule) if schedule is not None else []
    if schedule is None or len(blocks) != 1 or set(axis_kinds(schedule, blocks[0])) != {"S"}:
        return None
    starts = _input_starts(schedule, blocks[0])
    return (schedule, blocks[0], starts) if len(starts) > 1 else None


def _input_starts(schedule: Schedule, block: SBlockRV) -> list[int]:
    statement, analyzer = schedule.get(block), Analyzer()
    channel = statement.iter_vars[-1].var
    starts = {0}
    for read in statement.reads:
        if len(read.region) == len(statement.iter_vars):
            distance = analyzer.simplify(channel - read.region[-1].min)
            if isinstance(distance, tirx.IntImm) and int(distance) > 0:
                starts.add(int(distance))
    return sorted(starts)
