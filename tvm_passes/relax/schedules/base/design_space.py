"""Rules that can schedule a function in several ways, among which a tuner chooses by measuring."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

Operator = TypeVar("Operator")
Way = TypeVar("Way")


@dataclass(frozen=True)
class Candidate(Generic[Way]):
    """A schedule of a function, and the way in which it was made."""

    way: Way
    schedule: Schedule


class DesignSpaceRule(ScheduleRule, Generic[Operator, Way]):
    """A rule with candidates: what it matches, its ways, and how a function is scheduled in one of these.

    `Operator` is what a match found in the function, such as its blocks, and `Way` what is chosen: a frozen dataclass,
    whose text says the choice to people.
    """

    @abstractmethod
    def match(self, func: tirx.PrimFunc, target: Target) -> tuple[Schedule, Operator] | None:
        """A schedule of a function with what all ways have in common, and what was found; None if it is another."""

    @abstractmethod
    def ways(self, schedule: Schedule, operator: Operator, target: Target) -> Iterable[Way]:
        """The ways that are worth a measurement, the one that an analytical model thinks best first.

        The schedule is for reading alone: candidates are copies of it.
        """

    @abstractmethod
    def apply_way(self, schedule: Schedule, operator: Operator, way: Way, target: Target) -> None:
        """Finishes a schedule that `match` began."""

    def candidates(self, func: tirx.PrimFunc, target: Target) -> Iterator[Candidate[Way]]:
        """The candidates of a function, best first, each made when it is asked for; none if the rule does not match."""
        matched = self.match(func, target)
        if matched is None:
            return
        schedule, operator = matched
        for way in self.ways(schedule, operator, target):
            # Blocks and loops that were found in a schedule are valid in its copies.
            candidate = schedule.copy()
            self.apply_way(candidate, operator, way, target)
            yield Candidate(way, candidate)

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        """The function by its first candidate, or None if the rule does not match."""
        first = next(self.candidates(func, target), None)
        return None if first is None else first.schedule

    def design_space(self, func: tirx.PrimFunc, target: Target) -> list[Schedule]:
        """The schedules of all candidates; empty if the rule does not match."""
        return [candidate.schedule for candidate in self.candidates(func, target)]
