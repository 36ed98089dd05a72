"""`verify` of int8: every tensor is the integer model's, and a scale or a zero point that is off makes it fail."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from PIL import Image
from typer.testing import CliRunner

from ksm_hw.artifact import parameters
from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.quantising.network import network_of
from ksm_hw.quantising.scheme import Quantisation, quantisation_of
from ksm_hw.report.accuracy import accuracy_on
from ksm_hw.report.verify import verify
from ksm_hw.runtime.session import Session

TASK = "kernel-task"


def test_every_tensor_is_the_integer_model_s(int8_artifact: Path, bundle: Bundle) -> None:
    result = CliRunner().invoke(app, ["verify", str(int8_artifact), "--json"])
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [one["task"] for one in results] == list(bundle.packs)
    for one in results:
        network = network_of(bundle, bundle.packs[one["task"]])
        assert [tensor["tensor"] for tensor in one["tensors"]] == [*network.ranged_tensors(), network.logits]
        assert all(tensor["equal"] is True for tensor in one["tensors"])
        assert 30 < one["tensors"][0]["signal_to_noise"] < 60
        assert min(tensor["signal_to_noise"] for tensor in one["tensors"]) > 3
        assert (one["passed"], one["images"], one["relative_error"]) == (True, 3, 0)


def test_a_zero_point_that_is_off(int8_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled task is given another zero point of one tensor than the pack has."""
    network = network_of(load_bundle(int8_artifact), load_bundle(int8_artifact).packs[TASK])
    calibration = load_bundle(int8_artifact).packs[TASK].calibration
    assert calibration is not None
    tensor = network.ranged_tensors()[5]

    def off(low: float, high: float) -> Quantisation:
        found = quantisation_of(low, high)
        if (low, high) != calibration.ranges[tensor]:
            return found
        return dataclasses.replace(found, zero_point=found.zero_point + (1 if found.zero_point < 255 else -1))

    monkeypatch.setattr(parameters, "quantisation_of", off)
    result = CliRunner().invoke(app, ["verify", str(int8_artifact), "--task", TASK, "--layers"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    first = next(line for line in result.stdout.splitlines() if "DIFFERS" in line)
    assert tensor in first


def weights_changed(change: Callable[[list[Any]], list[Any]]) -> Callable[[Session, str], list[Any]]:
    rewrite = Session._rewrite
    return lambda session, task: change([*rewrite(session, task)])


def test_a_weight_scale_that_is_off(int8_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel's multiplier of one layer is a 128th too large, as its weight's scale would make it."""

    def off(weights: list[Any]) -> list[Any]:
        place = next(index for index, one in enumerate(weights) if one.dtype == "float32" and one.shape[0] > 5)
        values = weights[place].numpy()
        values[1] *= np.float32(1 + 2**-7)
        weights[place] = tvm.runtime.tensor(values)
        return weights

    monkeypatch.setattr(Session, "_rewrite", weights_changed(off))
    (result,) = verify(int8_artifact, [TASK])
    assert not result.passed and result.first_difference is not None


def test_layers_are_of_int8(artifact: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(artifact), "--layers"])
    assert isinstance(result.exception, UserError) and "computes in float32" in str(result.exception)


@pytest.fixture(scope="module")
def labelled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with the classes of a task, two images of each to test on."""
    folder = tmp_path_factory.mktemp("set")
    generator = np.random.default_rng(0)
    for split, name in ((split, name) for split in ("train", "test") for name in bundle.packs[TASK].classes):
        (folder / split / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_the_accuracy_is_told_beside_float32(int8_artifact: Path, labelled: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(int8_artifact), "--task", TASK, "--data", str(labelled), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = (one["accuracy"] for one in json.loads(result.stdout)["results"])
    assert found["images"] == 10
    assert found["drop"] == pytest.approx(100 * (found["pytorch"] - found["compiled"]))


def test_a_set_of_other_classes(int8_artifact: Path, labelled: Path) -> None:
    session = Session.load(int8_artifact)
    session.switch("element-task")
    with pytest.raises(UserError, match=r"class 0.* and task 'element-task' class 0"):
        accuracy_on(session, load_bundle(int8_artifact), str(labelled))
