"""What repeated measurements of one thing say, and whether they say anything: medians, percentiles, noise."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOISE_LIMIT = 0.10  # Rounds that differ by more than this cannot be compared.
TOO_NOISY = "too noisy to compare"

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Timing:
    """What repeated measurements of one thing gave.

    Attributes:
        median_seconds, p90_seconds, p99_seconds, minimum_seconds: over all of them.
        count: how many.
        round_medians_seconds: median of each round.
        spread: the largest of them by the smallest, less 1.
        noisy: whether the spread is over `NOISE_LIMIT`.
    """

    median_seconds: float
    p90_seconds: float
    p99_seconds: float
    minimum_seconds: float
    count: int
    round_medians_seconds: tuple[float, ...]
    spread: float
    noisy: bool


@dataclass(frozen=True)
class Comparison:
    """A time against another that was measured in the same rounds.

    Attributes:
        ratio: median of the rounds' ratios of medians; 1.03 is 3 % slower than the other.
        lowest, highest: of the rounds' ratios.
        noisy: whether rounds of either differ by more than `NOISE_LIMIT`; then the ratio says nothing.
    """

    ratio: float
    lowest: float
    highest: float
    noisy: bool


def timing_of(rounds: Rounds) -> Timing:
    """Summarises the seconds of each round; every round must hold at least one."""
    together = sorted(seconds for round_ in rounds for seconds in round_)
    medians = tuple(statistics.median(round_) for round_ in rounds)
    spread = _spread(medians)
    return Timing(
        median_seconds=statistics.median(together),
        p90_seconds=_percentile(together, 0.90),
        p99_seconds=_percentile(together, 0.99),
        minimum_seconds=together[0],
        count=len(together),
        round_medians_seconds=medians,
        spread=spread,
        noisy=spread > NOISE_LIMIT,
    )


def compare_timings(ours: Timing, other: Timing) -> Comparison:
    """The first time against the second, round by round."""
    pairs = zip(ours.round_medians_seconds, other.round_medians_seconds, strict=True)
    ratios = sorted(mine / its for mine, its in pairs)
    return Comparison(
        ratio=statistics.median(ratios),
        lowest=ratios[0],
        highest=ratios[-1],
        noisy=ours.noisy or other.noisy,
    )


def _spread(medians: Sequence[float]) -> float:
    return max(medians) / min(medians) - 1


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the ordered values lies, between two of them where it falls between."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
