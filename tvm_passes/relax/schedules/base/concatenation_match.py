"""What a concatenation is, for schedules of every class of devices."""

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.sym import Analyzer


def input_starts(schedule: Schedule, block: SBlockRV) -> list[int]:
    """The output channels at which inputs begin, 0 included; empty if there are fewer than two."""
    statement, analyzer = schedule.get(block), Analyzer()
    channel = statement.iter_vars[-1].var
    starts = {0}
    for read in statement.reads:
        if len(read.region) == len(statement.iter_vars):
            distance = analyzer.simplify(channel - read.region[-1].min)
            if isinstance(distance, tirx.IntImm) and int(distance) > 0:
                starts.add(int(distance))
    return sorted(starts) if len(starts) > 1 else []
