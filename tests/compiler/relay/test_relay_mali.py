"""Relay's kernels for Mali on pocl, an OpenCL device on the CPU, through the runtime that TVM 0.19's sources become."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
from compare_with_relax import assert_same_as_relax
from damage import unsealed
from random_tasks import random_bundle
from verifications import assert_all_passed

from ksm_hw.artifact.modes import FOLD_MODES, FoldMode
from ksm_hw.boards.open_session import open_session
from ksm_hw.cli import main
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.report.measure import measure_artifact
from ksm_hw.report.verify import verify
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.opencl.build import build_opencl_runtime
from ksm_hw.runtime.relay.opencl.runtime import relay_runtime_sources
from ksm_hw.toolchains.targets import load_target

pytestmark = pytest.mark.usefixtures("opencl", "relay")


@pytest.fixture(autouse=True)
def largest_work_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """pocl takes larger work groups than the least of the Malis, unless it is told not to."""
    monkeypatch.setenv("POCL_MAX_WORK_GROUP_SIZE", str(load_target("mali").tvm["max_threads_per_block"]))


@pytest.fixture(scope="module")
def two_tasks() -> Bundle:
    """Of a network with few kernels, which pocl compiles one by one; rows of a mask take several work groups."""
    bundle, other = (random_bundle("resnet18", 32, ("element",), seed) for seed in (0, 1))
    pack = dataclasses.replace(other.packs["element-task"], task="other-task", backbone_sha256=bundle.backbone_sha256)
    return dataclasses.replace(bundle, packs={**bundle.packs, "other-task": pack})


def compiled(bundle: Bundle, folder: Path, fold: FoldMode = "switch") -> list[Path]:
    """The bundle for this machine's OpenCL device."""
    return compile_bundle(bundle, load_target("mali", host="host"), folder, fold=fold, ir="relay")


@pytest.fixture(scope="module")
def switched(relay: None, two_tasks: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two tasks with `switch`; read only."""
    return compiled(two_tasks, tmp_path_factory.mktemp("mali") / "artifact")[0]


@pytest.mark.slow
def test_switches_there_and_back(switched: Path, photographs: Path) -> None:
    """Weights are rewritten on the device, and what a task leaves behind must not show in the next."""
    order = ["element-task", "other-task", "element-task"]
    assert_all_passed(verify(switched, order, photographs), order, 3)


@pytest.mark.slow
@pytest.mark.parametrize("fold", ["bake", "fused"])
def test_a_task_in_the_other_modes(fold: FoldMode, two_tasks: Bundle, photographs: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(two_tasks, packs={"other-task": two_tasks.packs["other-task"]})
    (folder,) = compiled(one, tmp_path / "artifact", fold)
    assert_all_passed(verify(folder, images=photographs), ["other-task"], 3)


@pytest.mark.slow
def test_report(switched: Path) -> None:
    report = measure_artifact(switched, runs=5)
    assert report.ir == "relay" and report.tvm_version == "0.19.0"
    for task in report.tasks:
        assert task.latency.median_seconds > 0 and task.switch is not None
    assert report.memory.weights_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("fold", FOLD_MODES)
def test_shipped_tasks_equal_pytorch_s_and_relax_s(fold: FoldMode, tmp_path: Path) -> None:
    shipped = load_bundle(shipped_bundle())
    ours = compiled(shipped, tmp_path / "relay", fold)
    theirs = compile_bundle(shipped, load_target("host"), tmp_path / "relax", fold=fold)
    for ours_of_part, theirs_of_part in zip(ours, theirs, strict=True):
        for result in verify(ours_of_part):
            assert result.passed and result.agreement == 1, result
        assert_same_as_relax(ours_of_part, theirs_of_part, shipped)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mali", "mali-g52", "mali-g610"])
def test_every_mali(
    name: str, bundle: Bundle, photographs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A network with depthwise convolutions, and tasks that need functions of their own."""
    target = load_target(name, host="host")
    monkeypatch.setenv("POCL_MAX_WORK_GROUP_SIZE", str(target.tvm["max_threads_per_block"]))
    (folder,) = compile_bundle(bundle, target, tmp_path / "artifact", ir="relay")
    assert_all_passed(verify(folder, images=photographs), list(bundle.packs), 3)


def test_a_broken_kernel_is_reported_with_its_build_log(switched: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(switched, tmp_path / "artifact")
    (library,) = artifact.glob("rewrite_weights_*.so")
    content = library.read_bytes()
    assert content.count(b"__kernel void ") > 10
    library.write_bytes(content.replace(b"__kernel void ", b"__kernel vole "))
    manifest = unsealed((artifact / "manifest.json").read_text())
    manifest["files"][library.name]["sha256"] = sha256_of_file(library)
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"^The device 'opencl' failed: OpenCL build error(.|\n)*vole"):
        verify(artifact)


def test_without_a_device_it_says_what_to_install(switched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSM_HW_OPENCL_PLATFORM", "no such platform")
    with pytest.raises(UserError, match=r"^No OpenCL device found\. .*pocl-opencl-icd"), open_session(switched):
        pass


def test_a_runtime_that_is_not_there(switched: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KSM_HW_RELAY_OPENCL_RUNTIME", str(tmp_path / "gone.so"))
    with pytest.raises(UserError, match=r"KSM_HW_RELAY_OPENCL_RUNTIME names .*gone.so"), open_session(switched):
        pass


def test_a_build_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One source of the wheel is wrong, as if another version were there."""
    (tmp_path / "wrong.cc").write_text("#error this is wrong\n")
    sources = dataclasses.replace(relay_runtime_sources(), files=(tmp_path / "wrong.cc",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot build the OpenCL runtime: .*this is wrong"):
        build_opencl_runtime(sources=sources)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"No C\+\+ compiler for aarch64 .*g\+\+-aarch64-linux-gnu"):
        build_opencl_runtime("aarch64", sources=sources)
    assert not any((tmp_path / "cache").rglob("*.so"))


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "opencl", "build", "--ir", "relay", "-o", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    built = tmp_path / relay_runtime_sources().library
    assert json.loads(capsys.readouterr().out)["library"] == str(built) and built.is_file()
