"""Relay: its environment comes and goes by one command, and what it compiles computes what Relax's computes."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from board_processes import needs_emulated_board
from compare_with_relax import assert_same_as_relax
from pytest_of_relay import assert_passes_in_relay
from random_tasks import grown, random_bundle
from typer.testing import CliRunner
from verifications import ARCHITECTURES, assert_all_passed

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.artifact.modes import FOLD_MODES, FoldMode, IntermediateRepresentation
from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.relay.process import compiler_process
from ksm_hw.compiler.relay.tune import tune_through_relay
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.measuring.process import measuring_process
from ksm_hw.report.measure import measure_artifact
from ksm_hw.report.profile import profile_artifact
from ksm_hw.report.verify import verify
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.relay import environment
from ksm_hw.runtime.relay.process import relay_process
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import CompileTarget, load_target


def test_without_the_environment_a_message_says_what_to_do(no_relay: None, resnet: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not installed\. Install it: ksm-hw relay install"):
        compile_bundle(resnet, load_target("host"), tmp_path / "artifact", ir="relay")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(("ir", "threads"), [("relax", 8), ("relay", 4)])
def test_loops_in_equal_parts_are_for_fast_cores_alone(
    ir: IntermediateRepresentation, threads: int, resnet: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compile_nothing(_bundle: Bundle, target: CompileTarget, *_others: object) -> None:
        raise UserError(f"{target.cpu['num-cores']} threads")

    name = "compile_through_relay" if ir == "relay" else "compile_through_relax"
    monkeypatch.setattr(f"ksm_hw.compiler.{ir if ir == 'relax' else 'relay.compile'}.{name}", compile_nothing)
    with pytest.raises(UserError, match=f"{threads} threads"):
        compile_bundle(resnet, load_target("rk3588"), tmp_path / "artifact", ir=ir)


def test_schedules_are_tuned_for_the_cores_that_relay_compiles_for(
    relay: None, resnet: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepare_nothing(_folder: Path, target: CompileTarget, _origin: object) -> None:
        raise UserError(f"{target.cpu['num-cores']} threads")

    monkeypatch.setattr("ksm_hw.compiler.relay.tune.compiler_process", lambda **_: contextlib.nullcontext(Mock()))
    monkeypatch.setattr("ksm_hw.compiler.relay.tune.prepare_folder", prepare_nothing)
    with pytest.raises(UserError, match="4 threads"):
        tune_through_relay(resnet, load_target("rk3588"), tmp_path / "tuned", tuner="autotvm", trials=1)


@pytest.mark.slow  # A network compiled twice.
@pytest.mark.parametrize("ir", ["relax", "relay"])
def test_tasks_of_a_network_that_grew_are_verified_without_its_zero_channels(
    ir: IntermediateRepresentation, relay: None, resnet: Bundle, tmp_path: Path
) -> None:
    """As CPG leaves it: they have the first channels of each layer, and the artifact has no others."""
    save_bundle(grown(resnet), tmp_path / "bundle")

    def said(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    artifact = tmp_path / "artifact"
    said("compile", "--bundle", tmp_path / "bundle", "--target", "host", "--ir", ir, "--task", "all", "-o", artifact)
    channels = sum(len(array) for array in resnet.tensors.values() if array.ndim > 1)
    assert read_manifest(artifact).channels_left_out == channels // 2
    verified = json.loads(said("verify", artifact, "--json"))
    assert verified["passed"] and [row["task"] for row in verified["results"]] == list(resnet.packs)


def test_an_installation_that_fails_leaves_nothing(
    no_relay: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hash of one file is wrong: as if the index served something else."""
    changed = tmp_path / "requirements.txt"
    hashes = "--hash=sha256:" + "0" * 64
    changed.write_text(f"decorator==5.3.1 {hashes}\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", changed)
    result = CliRunner().invoke(app, ["relay", "install"])
    assert isinstance(result.exception, UserError) and "cannot install TVM 0.19: ERROR" in str(result.exception)
    assert not any(path.exists() for path in environment.environment_folder().parent.glob("*"))


def test_the_passes(relay: None) -> None:
    assert_passes_in_relay("tvm_passes/relay/relay_passes.py")


@pytest.mark.slow
@pytest.mark.parametrize("fold", FOLD_MODES)
def test_shipped_tasks_equal_pytorch_s_and_relax_s(
    fold: FoldMode, relay: None, shipped: Bundle, tmp_path: Path
) -> None:
    ours = compile_bundle(shipped, load_target("host"), tmp_path / "relay", fold=fold, ir="relay")
    theirs = compile_bundle(shipped, load_target("host"), tmp_path / "relax", fold=fold)
    for ours_of_part, theirs_of_part in zip(ours, theirs, strict=True):
        for result in verify(ours_of_part):
            assert result.passed and result.agreement == 1, result
        assert_same_as_relax(ours_of_part, theirs_of_part, shipped)


def check_tasks(folders: list[Path], bundle: Bundle) -> list[dict]:
    """Compares every task of artifacts with PyTorch; returns what their manifests say of tasks."""
    assert_all_passed([result for folder in folders for result in verify(folder)], list(bundle.packs), 3)
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    assert [manifest[key] for key in ("ir", "tvm_version", "precision")] == ["relay", "0.19.0", "float32"]
    return list(manifest["tasks"].values())


def test_tasks_of_different_masks(relay_artifact: Path, resnet: Bundle) -> None:
    """Two of the tasks share functions."""
    entries = check_tasks([relay_artifact], resnet)
    assert len({entry["main"] for entry in entries}) == 1
    assert len({entry["rewrite"] for entry in entries}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("fold", [fold for fold in FOLD_MODES if fold != "switch"])
def test_tasks_of_different_masks_in_other_modes(fold: FoldMode, relay: None, resnet: Bundle, tmp_path: Path) -> None:
    check_tasks(compile_bundle(resnet, load_target("host"), tmp_path / "artifact", fold=fold, ir="relay"), resnet)


@pytest.mark.slow
def test_tasks_with_codes_and_different_numbers_of_soft_values(
    relay: None, resnet: Bundle, photographs: Path, tmp_path: Path
) -> None:
    pack = resnet.packs["kernel-task"]

    def with_masks(task: str, low: float) -> None:
        masks = {}
        for layer, mask in pack.masks.items():
            values = unpack_mask(mask)
            masks[layer] = pack_mask(np.where(values > low, np.float32(1), values), scale_bits=8)
        packs[task] = dataclasses.replace(pack, task=task, masks=masks)

    packs: dict = {}
    with_masks("few", 0.15)
    with_masks("many", 0.45)
    with_masks("none", 0.0)
    both = dataclasses.replace(resnet, packs=packs, samples=None)
    (folder,) = compile_bundle(both, load_target("host"), tmp_path / "artifact", ir="relay")
    assert len(list(folder.glob("rewrite_weights_*.so"))) == 1
    # There and back: what one task leaves behind must not show in the next.
    results = verify(folder, ["few", "many", "none", "few"], photographs)
    assert_all_passed(results, ["few", "many", "none", "few"], 3)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("fold", FOLD_MODES)
def test_tasks_on_the_emulated_board(
    fold: FoldMode, relay: None, resnet: Bundle, emulated: BoardAddress, tmp_path: Path
) -> None:
    """Two tasks that share functions: each layout of masks more would be a minute more."""
    two = dataclasses.replace(resnet, packs={task: resnet.packs[task] for task in ("kernel-task", "other-task")})
    folders = compile_bundle(two, load_target("rpi4"), tmp_path / "artifact", fold=fold, ir="relay")
    results = [result for folder in folders for result in verify(folder, board=emulated)]
    assert_all_passed(results, list(two.packs), 3)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("fold", FOLD_MODES)
def test_shipped_tasks_on_the_emulated_board(
    fold: FoldMode, relay: None, shipped: Bundle, emulated: BoardAddress, tmp_path: Path
) -> None:
    ours = compile_bundle(shipped, load_target("rpi4"), tmp_path / "relay", fold=fold, ir="relay")
    theirs = compile_bundle(shipped, load_target("host"), tmp_path / "relax", fold=fold)
    for ours_of_part, theirs_of_part in zip(ours, theirs, strict=True):
        for result in verify(ours_of_part, board=emulated):
            assert result.passed and result.agreement == 1, result
        assert_same_as_relax(ours_of_part, theirs_of_part, shipped, emulated)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_with_masks_of_every_granularity(
    architecture: str, relay: None, photographs: Path, tmp_path: Path
) -> None:
    bundle = random_bundle(architecture)
    (folder,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact", ir="relay")
    assert_all_passed(verify(folder, images=photographs), sorted(bundle.packs), 3)


@pytest.fixture(scope="module")
def relay_artifact(relay: None, resnet: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18's three tasks, of two layouts of masks; read only."""
    return compile_bundle(resnet, load_target("host"), tmp_path_factory.mktemp("relay") / "artifact", ir="relay")[0]


@pytest.mark.slow
def test_report(relay_artifact: Path) -> None:
    report = measure_artifact(relay_artifact, runs=5)
    assert (report.ir, report.tvm_version) == ("relay", "0.19.0")
    for task in report.tasks:
        assert task.latency.median_seconds > 0 and task.unmasked_latency is not None and task.switch is not None
    assert 0 < report.memory.weights_bytes < report.memory.process_peak_bytes
    # The compiler alone would take more.
    assert report.memory.process_start_bytes < 200e6


def test_what_relay_s_artifacts_are_not_for(relay_artifact: Path) -> None:
    with pytest.raises(UserError, match="compiled through Relay"):
        Session.load(relay_artifact)
    with pytest.raises(UserError, match="compiled through Relay"):
        profile_artifact(relay_artifact)


def test_calls_are_not_told_apart(relay_artifact: Path) -> None:
    with measuring_process(relay_artifact) as measured:
        with pytest.raises(UserError, match=r"not told apart in an artifact of --ir relay\. Use --ir relax"):
            measured.ask("calls", task="kernel-task", repeats=1)
        assert len(measured.ask("run", task="kernel-task", repeats=2)) == 2


def test_a_missing_library_is_found(relay_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(relay_artifact, tmp_path / "artifact")
    (copy / "rewrite_weights_kernel.so").unlink()
    with pytest.raises(UserError, match=r"lacks .*rewrite_weights_kernel.so"), open_session(copy):
        pass


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("cuda-sm_80", {}, "without CUDA. Compile for CUDA with --ir relax"),
        ("host", {"runner": True}, "--runner is for artifacts of --ir relax"),
    ],
)
def test_what_relay_cannot_do(target: str, options: dict, message: str, resnet: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        compile_bundle(resnet, load_target(target), tmp_path / "artifact", ir="relay", **options)
    assert not (tmp_path / "artifact").exists()


def test_a_process_that_dies_is_an_error_that_says_how(relay: None) -> None:
    with relay_process() as process:
        os.kill(process._process.pid, signal.SIGABRT)
        with pytest.raises(UserError, match=r"ended by SIGABRT.* Use --ir relax"):
            process.call("load", "artifact", None)


def test_a_failure_inside_tvm_shows_its_last_words(relay: None, tmp_path: Path) -> None:
    with compiler_process() as process, pytest.raises(UserError, match=r"ended with status 1(.|\n)*such_kind"):
        process.call("compile", str(shipped_bundle()), str(tmp_path), {"kind": "such_kind"}, ["cc"], "switch", 1, None)


def test_an_environment_of_another_version_is_not_used(
    relay: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        changed = tmp_path / environment.REQUIREMENTS.name
        changed.write_text("decorator==5.3.1\n")
        patch.setattr(environment, "REQUIREMENTS", changed)
        with pytest.raises(UserError, match="of another version of ksm-hw"):
            environment.process_variables()


def test_removing_it_leaves_the_main_installation(
    relay: None, artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = environment.environment_folder()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shutil.copytree(installed, environment.environment_folder(), copy_function=os.link)
    before = {name: importlib.metadata.version(name) for name in ("apache-tvm", "numpy", "torch")}
    result = CliRunner().invoke(app, ["relay", "remove"])
    assert result.exit_code == 0 and "Removed" in result.stdout and not environment.environment_folder().exists()
    assert "Nothing at" in CliRunner().invoke(app, ["relay", "remove"]).stdout
    code = "import json, importlib.metadata as m, sys, tvm; print(tvm.__version__, m.version('apache-tvm'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == before["apache-tvm"]
    assert all(importlib.metadata.version(name) == version for name, version in before.items())
    assert verify(artifact, ["kernel-task"])[0].passed
