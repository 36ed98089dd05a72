"""Mali's kernels on pocl, an OpenCL device on the CPU: shipped tasks in every mode, and a broken kernel."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from damage import unsealed

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.tuning.tune import tune
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.report.verify import verify
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target

pytestmark = pytest.mark.usefixtures("opencl")


@pytest.fixture(scope="module")
def on_the_device(opencl: None, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle for this machine's OpenCL device; read only."""
    return compile_bundle(bundle, load_target("mali", host="host"), tmp_path_factory.mktemp("mali") / "artifact")[0]


# The kernels of four tasks take pocl most of a minute, and those of four libraries longer.
@pytest.mark.parametrize(
    "fold", ["switch", *[pytest.param(name, marks=pytest.mark.slow) for name in ("bake", "fused")]]
)
def test_every_shipped_task_in_every_mode(fold: FoldMode, tmp_path: Path) -> None:
    shipped = load_bundle(shipped_bundle())
    artifacts = compile_bundle(shipped, load_target("mali", host="host"), tmp_path / "artifact", fold=fold)
    results = [result for artifact in artifacts for result in verify(artifact)]
    assert [result.task for result in results] == list(shipped.packs)
    assert all(result.passed and result.images == 10 for result in results), results


def test_weights_are_rewritten_on_the_gpu(on_the_device: Path) -> None:
    """The session's own parameters and weights lie in the device's memory, and no kernel runs on the host."""
    session = Session.load(on_the_device)
    assert session.switch("other-task") > 0
    assert all(tensor.device == session._device for tensor in session._weights)
    assert "opencl" in str(session._device)


def test_a_tune_on_the_device_and_what_it_gives(bundle: Bundle, photographs: Path, tmp_path: Path) -> None:
    target = load_target("mali", host="host")
    one = dataclasses.replace(bundle, packs={"kernel-task": bundle.packs["kernel-task"]})
    result = tune(one, target, tmp_path / "tuned", trials=4)
    assert (result.trials, result.measured, result.failed) == (4, 4, 0)
    (artifact,) = compile_bundle(one, target, tmp_path / "artifact", tuned=tmp_path / "tuned")
    (verified,) = verify(artifact, images=photographs)
    assert verified.passed, verified


def test_a_broken_kernel_is_reported_with_its_build_log(on_the_device: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(on_the_device, tmp_path / "artifact")
    library = artifact / "model.so"
    content = library.read_bytes()
    assert content.count(b"__kernel void ") > 10
    library.write_bytes(content.replace(b"__kernel void ", b"__kernel vole ", 1))
    manifest = unsealed((artifact / "manifest.json").read_text())
    manifest["files"]["model.so"]["sha256"] = sha256_of_file(library)
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"The device 'opencl' failed: .*do not compile for(.|\n)*log:(.|\n)*vole"):
        verify(artifact)
