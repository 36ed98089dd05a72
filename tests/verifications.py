"""What a verification must show, of which networks, and in which modes."""

import pytest

from ksm_hw.artifact.modes import FOLD_MODES
from ksm_hw.report.verify import TOLERANCE, Verification

ARCHITECTURES = ["resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "efficientnet-lite0"]

# For what takes a minute or two a mode.
SWITCH_AND_SLOW_OTHERS = [
    fold if fold == "switch" else pytest.param(fold, marks=pytest.mark.slow) for fold in FOLD_MODES
]


def assert_all_passed(results: list[Verification], tasks: list[str], images: int) -> None:
    assert [result.task for result in results] == tasks
    for result in results:
        assert result.passed and result.relative_error <= TOLERANCE and result.images == images, result
        assert result.relative_error > 0, "logits that are equal to the last bit are no compiled model's"
