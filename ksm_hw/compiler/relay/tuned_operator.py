"""What the two searches of TVM 0.19 have in common for a tune: an operator of theirs. Runs in Relay's environment."""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from ksm_hw.compiler.relay.build_candidates import BuildFunction


class TunedOperator(Protocol):
    """An operator whose schedules are searched.

    Attributes:
        problem: what it computes: operators of one problem are ways to the same, of which the fastest will be taken.
        calls: that an inference makes of it.
        tried: seconds of each candidate so far, infinite where it failed, those of earlier tunes included.
        default_seconds: of the schedule that is taken without tuning; infinite where that was not measured.
        build: makes a module of a `job`, in a builder.
    """

    problem: Hashable
    calls: int
    tried: list[float]
    default_seconds: float
    build: BuildFunction

    def propose(self, count: int) -> Sequence[Any]:
        """At most so many candidates that were not tried; none where none is left."""

    def job(self, candidate: Any) -> Any:
        """What `build` takes, for a candidate."""

    def record(self, candidate: Any, seconds: float) -> None:
        """Writes what came of a candidate, infinite where it failed."""

    def learn(self, candidates: Sequence[Any], seconds: Sequence[float]) -> None:
        """Lets the search know of what it proposed last."""
