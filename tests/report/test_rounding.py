"""Backbones that are rounded at rest: the artifact is right over what it has, and what that costs is told apart."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounded_artifacts import rounded_artifact
from typer.testing import CliRunner, Result

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.report.measure import ArtifactReport, measure_artifact
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
    result = ksm_hw("verify", rounded, "--task", TASK)
    assert f"rounding the backbone to {rounded.name} costs is not known here" in result.stdout.replace("\n", " ")


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


def refused(*arguments: object) -> str:
    result = ksm_hw(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_a_bundle_that_is_not_the_source(rounded: Path, artifact: Path) -> None:
    assert "Leave --bundle out" in refused("verify", artifact, "--bundle", artifact)
    for command in ("verify", "report"):
        said = refused(command, rounded, "--bundle", rounded)
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


def test_constants_of_bake_are_in_as_many_bits_as_the_library_has(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = ("--target", "host", "--task", TASK, "--bundle", bundle_folder, "-o", tmp_path / "baked")
    said = refused("compile", *arguments, "--fold", "bake", "--backbone-precision", "int8")
    assert "With --fold bake the library holds" in said and not (tmp_path / "baked").exists()


def test_compile_writes_it(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = ("--target", "host", "--task", TASK, "--bundle", bundle_folder, "-o", tmp_path / "artifact")
    result = ksm_hw("compile", *arguments, "--backbone-precision", "int8", "--fold", "fused", "--json")
    assert result.exit_code == 0, result.output
    assert load_bundle(tmp_path / "artifact").backbone_precision == "int8"
    assert verified(tmp_path / "artifact", "--bundle", bundle_folder)["rounding"]["backbone_precision"] == "int8"
