"""When CPG prunes, how much, and what becomes of a task that misses its goal."""

import numpy as np
import pytest

from ksm_hw.learning.methods.cpg import CPG, SLACK, pruned_share
from ksm_hw.learning.methods.packnet import training_epochs
from ksm_hw.learning.options import LearningOptions


def test_a_third_of_the_epochs_prunes_as_20_and_10_of_the_paper_s_30() -> None:
    assert [training_epochs(epochs) for epochs in (2, 3, 5, 30)] == [1, 2, 4, 20]


def test_the_pruned_share_grows_by_the_cubic_law_to_the_whole() -> None:
    options = LearningOptions("cpg", epochs=30, prune=0.8)
    shares = [pruned_share(options, number) for number in range(1, 31)]
    expected = 0.8 * (1 - (1 - np.arange(1, 11) / 10) ** 3)
    assert shares[:20] == [0] * 20 and np.allclose(shares[20:], expected) and shares[-1] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("goal", "accuracies", "verdict"),
    [
        (0.9, [0.2], ""),  # Still learning.
        (0.9, [0.2, 0.8], "grow"),
        (0.8, [0.2, 0.8], ""),
        (0.8, [0.2, 0.85, 0.8], ""),
        (0.8, [0.2, 0.85, 0.79], "undo"),
        (None, [0.2, 0.3], ""),  # Nothing grows without a goal.
        (None, [0.2, 0.3, 0.3 - SLACK], ""),
        (None, [0.2, 0.3, 0.29 - SLACK], "undo"),
    ],
)
def test_what_becomes_of_a_task(goal: float | None, accuracies: list[float], verdict: str) -> None:
    assert CPG.end_epoch(LearningOptions("cpg", epochs=3, accuracy_goal=goal), accuracies) == verdict
