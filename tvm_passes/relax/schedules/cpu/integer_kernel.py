"""Convolutions of bytes, whose kernels are written as loops when their way is chosen (`write_integer_kernels.py`)."""

from collections.abc import Iterator

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from tvm_passes.relax.kernels.integer_kernel import WAY, Way, described_convolution, numbers_of, ways
from tvm_passes.relax.kernels.integer_shape import IntegerConvolution
from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit


class IntegerKernel(DesignSpaceRule[IntegerConvolution, Way]):
    """Matches descriptions of `kernels/integer_kernel.py`; a way is what becomes of its tile and tasks."""

    def match(self, func: tirx.PrimFunc, _: Target) -> tuple[Schedule, IntegerConvolution] | None:
        """What the function describes; None if it is no description."""
        shape = described_convolution(func)
        return None if shape is None else (Schedule(func), shape)

    def ways(self, _schedule: Schedule, operator: IntegerConvolution, target: Target) -> Iterator[Way]:
        """Its ways on the target's CPU."""
        vectors = integer_vectors(target)
        assert vectors is not None, "what is described is computed by vectors"
        return ways(operator, vectors, vector_unit(target).cores)

    def apply_way(self, schedule: Schedule, _operator: IntegerConvolution, way: Way, _target: Target) -> None:
        """Notes the way, which the loops are then written in."""
        schedule.annotate(schedule.get_sblock("root"), WAY, numbers_of(way))
