"""The built wheel, installed outside the checkout, finds the targets and tasks that ship with it."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `ksm-hw` of a fresh environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies are gigabytes. A path in a .pth file lends them; it does not lend the editable ksm_hw, because
    # .pth files in a folder that is added this way are not read.
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment / "bin" / "ksm-hw"


def run(command: Path, *arguments: str, folder: Path) -> dict:
    done = subprocess.run([command, *arguments, "--json"], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_package_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    python = installed.with_name("python")
    code = "import ksm_hw, tvm_passes; print(ksm_hw.__file__)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(installed.parent.parent) in done.stdout


def test_targets_are_found(installed: Path, tmp_path: Path) -> None:
    assert "host" in [target["name"] for target in run(installed, "targets", folder=tmp_path)["targets"]]


def test_a_shipped_task_compiles_and_verifies(installed: Path, tmp_path: Path) -> None:
    tasks = run(installed, "tasks", folder=tmp_path)["tasks"]
    assert len(tasks) >= 4
    run(installed, "compile", "--target", "host", "--task", tasks[0]["task"], "-o", "artifact", folder=tmp_path)
    assert run(installed, "verify", "artifact", folder=tmp_path)["passed"]
