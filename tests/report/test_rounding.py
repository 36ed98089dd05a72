"""Backbones that are rounded at rest: the artifact is right over what it has, and what that costs is told apart."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rounded_artifacts import rounded_artifact
from typer.testing import CliRunner, Result

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.report import accuracy, measure
from ksm_hw.report.accuracy import Accuracy
from ksm_hw.report.measure import ArtifactReport, measure_artifact
from ksm_hw.report.rounding import exact_bundle
from ksm_hw.report.terminal import precision_tables, report_tables
from ksm_hw.runtime.session import Session

TASK = "kernel-task"
ROUNDED: tuple[BackbonePrecision, ...] = ("float16", "int8")


def ksm_hw(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def verified(*arguments: object) -> dict[str, Any]:
    result = ksm_hw("verify", *arguments, "--task", TASK, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["results"]
    return found


@pytest.fixture(scope="module", params=ROUNDED)
def rounded(request: pytest.FixtureRequest, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded_artifact(artifact, request.param, tmp_path_factory.mktemp("rounded") / request.param)


def test_it_is_verified_over_its_own_backbone(rounded: Path, bundle_folder: Path) -> None:
    precision = rounded.name
    found = verified(rounded, "--bundle", bundle_folder)
    assert found["passed"] and found["relative_error"] < 1e-5
    cost = found["rounding"]
    assert cost["backbone_precision"] == precision and 0 <= cost["agreement"] <= 1
    # Far more than the compiled network is off, and far less than what would be another network.
    assert (1e-4 if precision == "float16" else 1e-3) < cost["relative_error"] < 0.3
    assert cost["absolute_error"] > 0


def test_int8_inferences_of_an_int8_backbone(int8_artifact: Path, bundle_folder: Path, tmp_path: Path) -> None:
    found = verified(rounded_artifact(int8_artifact, "int8", tmp_path / "int8"), "--bundle", bundle_folder)
    assert found["passed"] and found["relative_error"] == 0
    assert all(tensor["equal"] for tensor in found["tensors"])
    assert found["rounding"]["relative_error"] > 1e-3


def test_what_is_not_known_is_said(rounded: Path) -> None:
    assert verified(rounded)["rounding"] is None
    result = ksm_hw("verify", rounded)
    said = f"rounding the backbone to {rounded.name} costs is not known here"
    assert result.stdout.replace("\n", " ").count(said) == 1


def test_tasks_tells_what_the_backbone_lies_in(rounded: Path, artifact: Path) -> None:
    titles = [" ".join(ksm_hw("tasks", "--bundle", folder).stdout.split()) for folder in (rounded, artifact)]
    assert f"at rest in {rounded.name}" in titles[0] and "at rest" not in titles[1]


def test_a_session_computes_with_the_rounded_weights(rounded: Path, artifact: Path) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    logits = [Session.load(folder).run(images, TASK) for folder in (rounded, artifact)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-6
    assert (rounded / "backbone.safetensors").stat().st_size < 0.6 * (artifact / "backbone.safetensors").stat().st_size


@pytest.fixture(scope="module")
def reported(rounded: Path, bundle_folder: Path) -> ArtifactReport:
    return measure_artifact(rounded, 10, compare_unmasked=False, source=bundle_folder)


def test_a_report_has_what_rounding_costs(reported: ArtifactReport) -> None:
    assert reported.backbone_precision == Path(reported.artifact).name
    assert all(task.rounding is not None and task.rounding.relative_error > 1e-4 for task in reported.tasks)
    (table,) = [one for one in report_tables(reported) if one.title.startswith("What rounding the backbone to")]
    assert [row[0] for row in table.rows] == [task.task for task in reported.tasks]


def test_precisions_at_rest_are_shown_side_by_side(artifact: Path, reported: ArtifactReport) -> None:
    plain = measure_artifact(artifact, 10, compare_unmasked=False)
    (table,) = precision_tables([plain, reported])
    assert {row[1] for row in table.rows} == {"float32, switch", f"float32 of {reported.backbone_precision}, switch"}


class Answers:
    """A session, or a network, that answers the images of a test set with these classes."""

    task = TASK

    def __init__(self, classes: list[int]) -> None:
        self.logits = np.eye(5, dtype=np.float32)[classes]

    def run_all(self, images: np.ndarray) -> np.ndarray:
        return self.logits[: len(images)]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run_all(images.numpy()))


def test_points_are_lost_to_the_compiled_model_to_rounding_and_to_both(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four images right are, over float32's backbone, all; over the rounded one three; compiled one."""
    rounded, exact = dataclasses.replace(bundle), dataclasses.replace(bundle)
    answers = {id(rounded): [0, 1, 2, 0], id(exact): [0, 1, 2, 3]}
    monkeypatch.setattr(accuracy, "task_module", lambda one, pack: Answers(answers[id(one)]))
    monkeypatch.setattr(accuracy, "test_batches", lambda *given: [(torch.zeros(4, 3, 8, 8), torch.arange(4))])
    data: Any = SimpleNamespace(test=range(4))
    session: Any = Answers([0, 0, 0, 0])
    assert accuracy.accuracy_on(session, rounded, data) == Accuracy(4, 0.25, 0.75, 50.0)
    assert accuracy.accuracy_on(session, rounded, data, exact=exact) == Accuracy(4, 0.25, 0.75, 50.0, 25.0, 75.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of any task, on which all of that was counted; nothing where the backbone is not known."""

    def count(session: Any, bundle: Any, data: Any, on_step: Any, exact: Any) -> Accuracy:
        assert exact is not None and exact.backbone_precision == "float32"
        return Accuracy(4, 0.25, 0.75, 50.0, 25.0, 75.0)

    for module in ("accuracy", "verify"):
        monkeypatch.setattr(f"ksm_hw.report.{module}.accuracy_on", count)
        monkeypatch.setattr(f"ksm_hw.report.{module}.is_tested_on", lambda pack, data: pack.task == TASK)
    monkeypatch.setattr("ksm_hw.cli.check._find_test_set", lambda *given: "a set")


@pytest.mark.usefixtures("counted")
def test_what_is_lost_in_all_is_told(rounded: Path, reported: ArtifactReport, bundle_folder: Path) -> None:
    result = ksm_hw("verify", rounded, "--task", TASK, "--bundle", bundle_folder, "--data", "glyphs")
    said = result.stdout.replace("\n", " ")
    assert "PyTorch in float32 over the rounded backbone 75.00%: a drop of 50.00 points; " in said
    assert "beside the backbone in float32 75.00 points, rounding included." in said
    assert "PyTorch loses 25.00 points by it" in said
    exact, data = exact_bundle(load_bundle(rounded), bundle_folder), cast(Any, "a set")
    found = measure._with_accuracy(reported, data, None, None, lambda step: None, exact)
    assert {one.task: one.rounding_drop for one in found.tasks}[TASK] == 25


def refused(*arguments: object) -> str:
    result = ksm_hw(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("the work began")


def test_a_bundle_that_is_not_the_source(rounded: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Leave --bundle out" in refused("verify", artifact, "--bundle", artifact)
    for command in ("verify", "report"):
        with monkeypatch.context() as patch:  # An artifact of float32 is no reason to find it out late.
            patch.setattr("ksm_hw.report.measure.measure_artifact", never)
            patch.setattr("ksm_hw.report.verify.verify", never)
            said = refused(command, artifact, rounded, "--bundle", rounded)
        assert f"in {rounded.name} with SHA-256" in said and "compiled from" in said


def test_what_is_learned_over_float32_is_not_written_into_it(rounded: Path, tmp_path: Path) -> None:
    """An artifact without its manifest looks like a bundle."""
    copied = shutil.copytree(rounded, tmp_path / "copied", ignore=shutil.ignore_patterns("manifest.json"))
    said = refused("calibrate", "--bundle", copied, "--task", TASK, "--data", rounded / "samples")
    assert f"is rounded to {rounded.name}" in said


def test_it_is_compiled_again_as_it_is_or_not_at_all(rounded: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    said = refused("compile", "--target", "host", "--task", TASK, "--bundle", rounded, "-o", output)
    assert f"--backbone-precision {rounded.name}" in said and not output.exists()


def test_a_backbone_that_a_baked_library_does_not_read(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = ("--target", "host", "--task", TASK, "--bundle", bundle_folder, "-o", tmp_path / "baked")
    for precision in ("float32", "int8"):
        options = ("--fold", "bake", "--precision", precision, "--backbone-precision", "int8")
        said = refused("compile", *arguments, *options)
        assert "With --fold bake the library holds" in said and not (tmp_path / "baked").exists()


def test_compile_writes_it(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = ("--target", "host", "--task", TASK, "--bundle", bundle_folder, "-o", tmp_path / "artifact")
    result = ksm_hw("compile", *arguments, "--backbone-precision", "int8", "--fold", "fused", "--json")
    assert result.exit_code == 0, result.output
    assert load_bundle(tmp_path / "artifact").backbone_precision == "int8"
    assert verified(tmp_path / "artifact", "--bundle", bundle_folder)["rounding"]["backbone_precision"] == "int8"
