"""`verify` of int8: every tensor is the integer model's, and a scale or a zero point that is off makes it fail."""

import dataclasses
import json
import re
from collections import Counter
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
from ksm_hw.report import verify_integers
from ksm_hw.report.accuracy import find_test_set, is_tested_on
from ksm_hw.report.verify import verify
from ksm_hw.report.verify_integers import IntegerCheck
from ksm_hw.runtime.session import Session

TASK = "kernel-task"


def test_every_tensor_is_the_integer_model_s(int8_artifact: Path, bundle: Bundle) -> None:
    result = CliRunner().invoke(app, ["verify", str(int8_artifact), "--json"])
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [one["task"] for one in results] == list(bundle.packs)
    for one in results:
        network = network_of(bundle, bundle.packs[one["task"]])
        assert [tensor["tensor"] for tensor in one["tensors"]] == network.computed_tensors()
        assert all(tensor["equal"] is True for tensor in one["tensors"])
        assert 30 < one["tensors"][0]["signal_to_noise"] < 60
        # Of random weights noise grows from layer to layer; that of 4-bit soft values leaves 1 dB of the logits.
        signals = [tensor["signal_to_noise"] for tensor in one["tensors"]]
        assert min(signals[: len(signals) // 2]) > 12 and min(signals) > 0
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
        values[5] *= np.float32(1 + 2**-7)
        weights[place] = tvm.runtime.tensor(values)
        return weights

    monkeypatch.setattr(Session, "_rewrite", weights_changed(off))
    (result,) = verify(int8_artifact, [TASK])
    assert not result.passed and result.first_difference is not None


@pytest.fixture(scope="module")
def loaded(int8_artifact: Path) -> Session:
    session = Session.load(int8_artifact)
    session.switch(TASK)
    return session


IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


def test_a_fault_that_pooling_hides(
    loaded: Session, calibrated_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of the first layer that are not the largest of any window are wrong, and so no later tensor is."""
    seen_tensors = verify_integers._seen_tensors

    def spoilt(session: Session, images: Any) -> list[Any]:
        seen = seen_tensors(session, images)
        place = next(place for place, one in enumerate(seen) if one.shape[1:] == (16, 16, 24))
        seen[place] = np.where(seen[place] == seen[place].min(), seen[place] + 1, seen[place])
        return seen

    monkeypatch.setattr(verify_integers, "_seen_tensors", spoilt)
    check = IntegerCheck(loaded, calibrated_bundle)
    check.add(IMAGES)
    assert [one.tensor for one in check.tensors() if not one.equal] == ["conv1.0"]


def test_every_tensor_has_a_place_of_its_own(loaded: Session, calibrated_bundle: Bundle) -> None:
    """Whatever one call computes is missed where it is not what it should be: both parts of a split as well."""
    check = IntegerCheck(loaded, calibrated_bundle)
    check.add(IMAGES)
    names, places = check._names, check._places
    assert places is not None
    missed = Counter[str]()
    for place in set[int]().union(*places.values()):
        without = {name: others - {place} for name, others in places.items()}
        found = verify_integers._found(check._network, names, without)
        missed.update([name for name, there in found.items() if not there])
    # One whose only reader gives it the scale that it has already is at two places.
    assert {name for name in names[:-1] if not missed[name]} == {
        name for name in names[:-1] if len(places[name]) > 1 and name != "conv5.0/mean"
    }
    assert missed["conv5.0/mean"] == 2, "it is of one pixel, and so equal to what it is the mean of"
    split = [missed[name] for name in names if name.endswith("concatenation")]
    assert split.count(2) > 1, "both parts are looked for, where the next layer does not repeat the first"
    assert missed.total() > 60


def test_data_may_be_signed(loaded: Session, calibrated_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """arm64's kernels hold q - 128 as int8; a session on this machine must see tensors at all."""
    trace = Session.trace_run

    def signed(session: Session, instrument: Callable[..., None], images: Any) -> None:
        def told(*call: Any) -> None:
            instrument(*(int8(one) if str(getattr(one, "dtype", "")) == "uint8" else one for one in call))

        trace(session, told, images)

    def int8(tensor: Any) -> Any:
        return tvm.runtime.tensor((tensor.numpy().astype(np.int16) - 128).astype(np.int8))

    check = IntegerCheck(loaded, calibrated_bundle)
    monkeypatch.setattr(Session, "trace_run", signed)
    check.add(IMAGES)
    assert all(one.equal is True for one in check.tensors())
    monkeypatch.setattr(Session, "trace_run", lambda *_: None)
    with pytest.raises(UserError, match="no tensor of 8 bits"):
        check.add(IMAGES)


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


@pytest.mark.parametrize("command", [["verify", "--task", "element-task"], ["report"]])
def test_a_set_is_looked_at_before_the_work(
    int8_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for work in ("ksm_hw.report.verify.verify", "ksm_hw.report.measure.measure_artifact"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work began"))
    other = tmp_path / "set"
    for name in (f"{split}/{name}" for split in ("train", "test") for name in ("a", "b", "c")):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(other / name / "1.png")
    for data, message in (("no-such-set", "no-such-set"), (str(other), r"3 classes, 'a' to 'c', which no task has: ")):
        result = CliRunner().invoke(app, [*command, str(int8_artifact), "--data", data])
        assert isinstance(result.exception, UserError), result.output
        assert re.search(message, str(result.exception))


def test_tasks_of_other_classes_are_left_out(int8_artifact: Path, labelled: Path) -> None:
    """One rule for verify and report: tasks of the set's classes are tested, and there must be one."""
    data = find_test_set(str(labelled), [int8_artifact])
    with pytest.raises(UserError, match=r"5 classes, .* which no task has: 'element-task' has 7 classes"):
        find_test_set(str(labelled), [int8_artifact], "element-task")
    packs = load_bundle(int8_artifact).packs
    assert [task for task, pack in packs.items() if is_tested_on(pack, data)] == [
        task for task, pack in packs.items() if len(pack.classes) == 5
    ]
