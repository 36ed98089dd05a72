"""Inputs that are multiplied by lanes: read in vectors of several steps of a reduction.

NEON multiplies a register by one value of another. Where a tile reads its inputs value by value, each is a load of its
own, and the loads are the limit; where it first reads those of four steps together, into registers, LLVM takes their
lanes.
"""

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_passes.relax.schedules.base.blocks import extents, widest_vector
from tvm_passes.relax.schedules.base.precision import widest_type
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit


def steps_at_once(schedule: Schedule, reduction: SBlockRV, unit: VectorUnit) -> int:
    """How many steps of a reduction's last axis read their inputs together; 1 where that is no gain."""
    return widest_vector(extents(schedule, reduction)[-1], unit.lanes(widest_type(schedule, reduction)))


def apart(schedule: Schedule, reduction: SBlockRV) -> SBlockRV:
    """Makes reading what a reduction multiplies first a block of its own; before any of its loops is changed."""
    inputs = schedule.reindex(reduction, ("read", 0))
    schedule.set_scope(inputs, 0, "local")
    return inputs


def read_in_vectors(schedule: Schedule, inputs: SBlockRV, loop: LoopRV, depth: int) -> None:
    """Reads what a step of a loop multiplies before the step.

    Args:
        schedule: of the operator.
        inputs: as `apart` gives it.
        loop: around the steps that are unrolled.
        depth: how many loops there are to it, with it.
    """
    schedule.compute_at(inputs, loop, preserve_unit_loops=True)
    *others, vector = schedule.get_loops(inputs)[depth:]
    schedule.vectorize(vector)
    for other in others:
        schedule.unroll(other)
