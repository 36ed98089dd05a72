"""Results of one machine as they lie in a JSON file, so that a page shows those of several."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peers.results import Result


@dataclass(frozen=True)
class StoredResult(Result):
    """A result whose single inferences were not kept.

    Attributes:
        summary_: what `Result.summary` gave; has no times where the engine failed.
    """

    summary_: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether it has times."""
        return self.failure is None and "median_seconds" in self.summary_

    @property
    def median(self) -> float:
        """Of the seconds of all inferences."""
        return float(self.summary_["median_seconds"])

    @property
    def quartiles(self) -> tuple[float, float]:
        """As they were."""
        lower, upper = self.summary_["quartiles_seconds"]
        return float(lower), float(upper)

    @property
    def noisy(self) -> bool:
        """As it was."""
        return bool(self.summary_["noisy"])

    def summary(self) -> dict[str, Any]:
        """As it was."""
        return dict(self.summary_)


def read_results(file: Path) -> tuple[list[Result], dict[str, Any]]:
    """The results of a machine, and the facts of its run, from the JSON that `peers.py` wrote."""
    content = json.loads(file.read_text())
    names = {one.name for one in fields(Result)} - {"rounds"}
    results: list[Result] = []
    for one in content["results"]:
        # The rounds that counted, for their number; what was measured in them is in the summary.
        rounds = tuple((median,) for median in one.get("round_medians_seconds", ()))
        known = {name: value for name, value in one.items() if name in names}
        results.append(StoredResult(**known, rounds=rounds, summary_=one))
    return results, content["facts"]
