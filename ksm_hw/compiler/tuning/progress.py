"""What a tune tells of itself: while it goes on, and at its end."""

from dataclasses import dataclass
from typing import Literal

TunerName = Literal["autotvm", "metaschedule"]  # The searches of TVM 0.19, for operators of Relay.

FIRST_FAILURES = 16  # So many failures and no success: something is wrong with all.
HOPELESS = 1.5  # A candidate that takes so many times longer than the best so far is not measured thoroughly.
FAILED = 1e10  # Seconds that MetaSchedule, of either TVM, has in its records for a measurement that failed.


@dataclass(frozen=True)
class TuneProgress:
    """Where a tune is.

    Attributes:
        done: trials so far, those of earlier runs of the command included; `total` all that there will be at most.
        failed: those of `done` without a result; `error` is what the last of them said, or "".
        seconds_left: an estimate.
        latency: seconds of the best schedules so far, summed over all calls of the operators; None until each operator
            has a result.
        boards: that measure at once.
        again: measurements of candidates that had been measured before.
    """

    done: int
    total: int
    failed: int
    error: str
    seconds_left: float
    latency: float | None
    boards: int
    again: int


@dataclass(frozen=True)
class TuneResult:
    """What a tune ended with.

    Attributes:
        operators: how many different ones were tuned.
        trials: candidates in the records; `measured` by this run; `failed` those of `trials` without a result.
        again: measurements of this run of candidates that had been measured before.
        latency: as in `TuneProgress`; `default_latency` the same of the schedules that are taken without tuning, None
            where not all of them were measured.
    """

    operators: int
    trials: int
    measured: int
    failed: int
    again: int
    latency: float | None
    default_latency: float | None


def all_failed(trials: int, error: str) -> str:
    """What to tell a user when no trial succeeded."""
    return (
        f"All {trials} trials failed, so nothing was recorded. The last one said: {error}. Check that the target is "
        "that of the board (`ksm-hw targets`)."
    )
