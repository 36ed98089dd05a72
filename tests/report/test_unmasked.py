"""The network without masks is compiled as the artifact was, with the same tuning records, or not compared with it."""

import dataclasses
from pathlib import Path

import pytest

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.tuning.records_folder import HEADER, records_sha256
from ksm_hw.compiler.tuning.tune import tune
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.report.measure import ROUNDS, measure_artifact
from ksm_hw.report.terminal import machine_facts
from ksm_hw.report.unmasked import compile_unmasked, why_not_comparable
from ksm_hw.toolchains.targets import load_target


@pytest.fixture(scope="module")
def one_task(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, packs={"other-task": bundle.packs["other-task"]})


@pytest.fixture(scope="module")
def records(one_task: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    tune(one_task, load_target("host"), folder, trials=1)
    return folder


@pytest.fixture(scope="module")
def tuned_artifact(one_task: Bundle, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "artifact"
    return compile_bundle(one_task, load_target("host"), output, tuned=records)[0]


def test_the_hash_is_of_the_records_and_not_of_the_day(records: Path, tmp_path: Path) -> None:
    before = records_sha256(records)
    for path in records.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / HEADER).write_text("of another day")
    assert records_sha256(tmp_path) == before
    with (tmp_path / "database_tuning_record.json").open("a") as stream:
        stream.write("\n")
    assert records_sha256(tmp_path) != before


def test_without_masks_it_is_compiled_with_the_same_records(
    tuned_artifact: Path, one_task: Bundle, records: Path, tmp_path: Path
) -> None:
    manifest, steps = read_manifest(tuned_artifact), list[str]()
    assert manifest.tuning_sha256 == records_sha256(records)
    assert why_not_comparable(tuned_artifact, manifest, records) == ""
    plain = compile_unmasked(manifest, one_task, records, tmp_path / "plain", steps.append)
    assert read_manifest(plain).tuning_sha256 == manifest.tuning_sha256
    assert any("operators with tuned schedules" in step for step in steps)


def test_without_masks_it_computes_in_the_same_precision(
    artifact: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 beside float32 would say of the mask what the precision does."""
    asked = dict[str, object]()
    monkeypatch.setattr(
        "ksm_hw.compiler.compile.compile_bundle", lambda *_, **options: asked.update(options) or [tmp_path]
    )
    for precision in ("int8", "float32"):
        manifest = dataclasses.replace(read_manifest(artifact), precision=precision)  # type: ignore[arg-type]
        compile_unmasked(manifest, bundle, None, tmp_path, lambda step: None)
        assert asked["precision"] == precision


def test_a_tuned_artifact_is_not_compared_with_an_untuned_network(tuned_artifact: Path) -> None:
    report = measure_artifact(tuned_artifact, ROUNDS)
    assert all(task.unmasked_latency is None and task.mask_overhead is None for task in report.tasks)
    assert "--tuned" in report.not_compared
    assert report.not_compared in dict(machine_facts(report))["without masks"]


def test_other_records_are_refused(tuned_artifact: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No tuning records at"):
        measure_artifact(tuned_artifact, tuned=tmp_path)
    (tmp_path / HEADER).write_bytes((records / HEADER).read_bytes())
    with pytest.raises(UserError, match=r"compiled with tuning records of SHA-256 .* those in .* have"):
        measure_artifact(tuned_artifact, tuned=tmp_path)
    # Beside a tuned artifact one that is not may be reported; the records are no matter of its.
    untuned = dataclasses.replace(read_manifest(tuned_artifact), tuning_sha256=None)
    assert why_not_comparable(tuned_artifact, untuned, tmp_path) == ""
