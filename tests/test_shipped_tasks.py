"""The tasks that ship are what the documents say: over the packaged weights, with the stated accuracy."""

import json
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.learn import measure_accuracy
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images
from ksm_hw.models.task_module import task_module
from ksm_hw.resources import shipped_bundle

TASKS = json.loads((shipped_bundle() / "bundle.json").read_text())["tasks"]
RESULTS = json.loads((Path(__file__).parent.parent / "docs" / "learned_tasks.json").read_text())


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(shipped_bundle())


def test_there_are_four_tasks_and_no_backbone_file(shipped: Bundle) -> None:
    assert len(TASKS) >= 4
    assert not (shipped_bundle() / "backbone.safetensors").exists()


# The other two sets' images are drawn for most of a minute.
QUICK = {"emoji", "fashion-mnist"}


@pytest.mark.parametrize(
    "task", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
)
def test_the_accuracy_of_the_stored_task_is_the_stated_one(shipped: Bundle, task: str) -> None:
    try:
        data = load_task_data(task)
    except UserError as error:
        pytest.skip(str(error))
    pack = shipped.packs[task]
    # Of the few test images; the pack says that of all, which takes minutes.
    accuracy = measure_accuracy(task_module(shipped, pack), data.test, pack.preprocessing)
    assert data.classes == pack.classes
    # Another CPU may round a logit the other way and so move an image or two.
    assert accuracy == pytest.approx(RESULTS[task]["of the few"], abs=2.5 / len(data.test))
    assert RESULTS[task]["ksm"]["accuracies"]["0"] == pack.facts["accuracy"]


@pytest.mark.parametrize("task", TASKS)
def test_masks_are_worth_more_than_a_head_alone(task: str) -> None:
    ksm, head = (RESULTS[task][method]["accuracies"] for method in ("ksm", "head"))
    assert all(ksm[seed] > accuracy for seed, accuracy in head.items())


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_of_known_classes(shipped: Bundle, task: str) -> None:
    assert len(sample_images(shipped, task)) == 10


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_calibrated_on_300_images(shipped: Bundle, task: str) -> None:
    pack = shipped.packs[task]
    found = pack.calibration
    assert found is not None and found.images == 300
    assert (found.backbone_sha256, found.image_size) == (pack.backbone_sha256, pack.preprocessing.image_size)
    assert len(found.ranges) == 60
    assert all(low <= 0 <= high and low < high for low, high in found.ranges.values())
    assert found.ranges["_blocks.1._expand_conv"][0] == 0, "a ReLU6 is behind it"
    assert found.ranges["_blocks.1._expand_conv"][1] <= 6
