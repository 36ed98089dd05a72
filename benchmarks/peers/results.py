"""What was measured, and what follows from it: medians, spreads, ratios to the best peer, geometric means."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ksm_hw.report.timing import NOISE_LIMIT, timing_of

ERROR_LIMIT = 1e-3  # Of the logits, relative; float32 in another order of sums stays far below.
# In int8: of the images, and the error of logits that are the same for all images. The first alone says little of a
# network with random weights, which gives most images one class.
AGREEMENT_LIMIT, INT8_ERROR_LIMIT = 0.5, 1.0


@dataclass(frozen=True)
class Result:
    """An engine on a network with a number of threads.

    Attributes:
        network, threads, engine: names of the catalogue; `title` the engine's, `ours` whether it is ksm-hw.
        version: of the engine; empty where it did not start.
        error_of_logits: largest difference from PyTorch's, by the largest of those; of int8 what `serve.judged` gives.
        agreement: of int8, the share of images whose top class is float32's.
        rounds: seconds of each inference of each round that counts, the quieter half of all rounds.
        repeated: turns that were measured again because the machine was not quiet or the round lay apart.
        disturbed: rounds that count in which the machine was not quiet, for the others were worse.
        failure: why there are no times; None where there are.
    """

    network: str
    threads: int
    engine: str
    title: str
    ours: bool
    version: str = ""
    error_of_logits: float | None = None
    agreement: float | None = None
    rounds: tuple[tuple[float, ...], ...] = ()
    repeated: int = 0
    disturbed: int = 0
    failure: str | None = None

    @property
    def measured(self) -> bool:
        """Whether it has times."""
        return self.failure is None and bool(self.rounds)

    @property
    def median(self) -> float:
        """Of the seconds of all inferences."""
        return timing_of(self.rounds).median_seconds

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the seconds of all inferences lies below the first, a quarter above the second."""
        return _quartiles([seconds for round_ in self.rounds for seconds in round_])

    @property
    def interquartile(self) -> float:
        """Distance of the quartiles."""
        lower, upper = self.quartiles
        return upper - lower

    @property
    def noisy(self) -> bool:
        """Whether the machine was not quiet in a round that counts, or the rounds differ too much to be compared.

        They do where a quarter of their medians lies so far above another quarter: the farthest two of many rounds
        always lie far apart.
        """
        medians = timing_of(self.rounds).round_medians_seconds
        lower, upper = _quartiles(medians)
        return self.disturbed > 0 or upper - lower > NOISE_LIMIT * statistics.median(medians)

    def summary(self) -> dict[str, Any]:
        """For JSON: all but the single inferences, of which there are too many to read."""
        content = dataclasses.asdict(self)
        del content["rounds"]
        if not self.measured:
            return content
        timing = timing_of(self.rounds)
        return content | {
            "median_seconds": timing.median_seconds,
            "quartiles_seconds": self.quartiles,
            "minimum_seconds": timing.minimum_seconds,
            "inferences": timing.count,
            "round_medians_seconds": timing.round_medians_seconds,
            "noisy": self.noisy,
        }


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    """A quarter of the values lies below the first, a quarter above the second; of one value it is both."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def wrong_outputs(error: float) -> str | None:
    """Why logits in float32 with that error do not count as the network's; None where they do."""
    if error <= ERROR_LIMIT:
        return None
    return f"wrong outputs: they differ from PyTorch's by {error:.1e} of the largest logit"


def unlike_float32(agreement: float, error: float) -> str | None:
    """Why int8 with that agreement and error does not count as the network's; None where it does."""
    if agreement >= AGREEMENT_LIMIT and error < INT8_ERROR_LIMIT:
        return None
    return f"wrong outputs: {agreement:.0%} of the images have float32's top class, and the error is {error:.2f}"


def best_peer(results: Sequence[Result]) -> Result | None:
    """The quickest engine but ours, of the results of one network and number of threads."""
    peers = [result for result in results if result.measured and not result.ours]
    return min(peers, key=lambda result: result.median, default=None)


def ratios_to_best_peer(results: Sequence[Result]) -> dict[str, float]:
    """Each engine's median by the best peer's, of the results of one network and number of threads."""
    best = best_peer(results)
    if best is None:
        return {}
    return {result.engine: result.median / best.median for result in results if result.measured}


def cells(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """The results by network and threads, in the order in which these first appear."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        found.setdefault((result.network, result.threads), []).append(result)
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers, of which there is at least one."""
    return math.exp(statistics.fmean(map(math.log, values)))


def mean_ratios(results: Sequence[Result], threads: int) -> dict[str, tuple[float, int]]:
    """For each engine the geometric mean of its ratios to the best peer over the networks, and over how many."""
    by_engine: dict[str, list[float]] = {}
    for (_, count), cell in cells(results).items():
        if count == threads:
            for engine, ratio in ratios_to_best_peer(cell).items():
                by_engine.setdefault(engine, []).append(ratio)
    return {engine: (geometric_mean(ratios), len(ratios)) for engine, ratios in by_engine.items()}
