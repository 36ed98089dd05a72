"""What `training_recipes.py` does beside learning: what it keeps, what goes on with the next seed, means."""

import dataclasses
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_better_half_goes_on_and_what_the_file_has_is_not_learned(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from training_recipes import Found, final_accuracy, try_recipes, whole_seeds

    first = {"base": [0.1, 0.2], "best": [0.3, 0.9], "second": [0.8], "third": [0.95, 0.7], "diverged": []}

    def found(recipe: str, seed: int) -> Found:
        return Found(recipe, "no-such-set", seed, {}, first[recipe], [], "CPU")

    # Learning what is missing would fail: there is no such set.
    there = [found(recipe, 0) for recipe in first] + [found(recipe, 1) for recipe in ("base", "best", "second")]
    file = tmp_path / "found.json"
    file.write_text(json.dumps([dataclasses.asdict(each) for each in there]))
    recipes = {name: {} for name in first}
    assert try_recipes(recipes, ["no-such-set"], 2, 1, file, halve=True, always=["base"]) == there
    assert final_accuracy(there, "best") == pytest.approx(0.9) and final_accuracy(there, "diverged") == 0
    assert whole_seeds(there, "best", ["no-such-set"]) == {0, 1} and whole_seeds(there, "third", ["another"]) == set()
