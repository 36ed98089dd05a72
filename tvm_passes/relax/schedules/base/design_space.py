"""Rules that can schedule a function in several ways, among which a tuner chooses by measuring."""

from abc import abstractmethod
from collections.abc import Iterator

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target


class DesignSpaceRule(ScheduleRule):
    """A rule with candidates, the one that an analytical model thinks best first."""

    @abstractmethod
    def candidates(self, func: tirx.PrimFunc, target: Target) -> Iterator[Schedule]:
        """The schedules of a function, best first, each made when it is asked for; none if the rule does not match."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The function by its first candidate, or None if the rule does not match."""
        return next(self.candidates(func, target), None)

    def design_space(self, func: tirx.PrimFunc, target: Target) -> list[Schedule]:
        """All candidates; empty if the rule does not match."""
        return list(self.candidates(func, target))
