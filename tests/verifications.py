"""What a verification must show, and of which networks."""

from ksm_hw.report.verify import TOLERANCE, Verification

ARCHITECTURES = ["resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "efficientnet-lite0"]


def assert_all_passed(results: list[Verification], tasks: list[str], images: int) -> None:
    assert [result.task for result in results] == tasks
    for result in results:
        assert result.passed and result.relative_error <= TOLERANCE and result.images == images, result
        assert result.relative_error > 0, "logits that are equal to the last bit are no compiled model's"
