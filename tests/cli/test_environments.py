"""`make demo`'s commands where a machine is odd: no home, a read-only root, one CPU, few file descriptors, LANG=C."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 12345  # A number that no user has.
# Reads what root reads, for Python itself may lie in root's home, and writes what everybody writes.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "env", "-u", "HOME"]
READ_ONLY_ROOT = """
mount --make-rprivate / && mount --bind "$PWD" "$PWD" && mount -o remount,bind,ro / && cd "$PWD" && ! touch /tmp/any &&
exec "$@"
"""
ENVIRONMENTS = {
    "a user without a home": AS_NOBODY,
    "a read-only root": ["unshare", "--mount", "bash", "-c", READ_ONLY_ROOT, "bash"],
    "one CPU": ["taskset", "-c", "0"],
    "64 file descriptors": ["bash", "-c", 'ulimit -n 64 && exec "$@"', "bash"],
    "LANG=C": ["env", "LANG=C", "LC_ALL=C", "PYTHONIOENCODING=ascii"],
    "no PATH": ["env", "-u", "PATH"],
}
FOR_ROOT = {"a user without a home": "setpriv", "a read-only root": "unshare"}


def run_in(environment: str, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    if (program := FOR_ROOT.get(environment)) and (os.getuid() != 0 or shutil.which(program) is None):
        pytest.skip(f"only root can make {environment}, with the program {program}")
    return subprocess.run(
        [*ENVIRONMENTS[environment], sys.executable, *map(str, command)],
        capture_output=True, text=True, cwd=folder, timeout=600, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    """A folder that everybody may write to, and reach."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o777)
    return tmp_path


def test_a_user_without_a_home_has_one(writable: Path) -> None:
    """TVM asks for a home when it is imported; what takes its place is said."""
    done = run_in("a user without a home", writable, "-m", "ksm_hw.cli", "doctor", "host")
    assert done.returncode == 0 and "ready" in done.stdout
    assert "This user has no home: " in done.stderr and f"ksm-hw-{NOBODY}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_demo(environment: str, writable: Path, bundle_folder: Path) -> None:
    shutil.copytree(bundle_folder, writable / "bundle").chmod(0o755)  # What pytest makes is for its own user.
    for command in (
        ["-m", "ksm_hw.cli", "compile", "--target", "host", "--task", "all", "--bundle", "bundle", "-o", "demo"],
        [REPOSITORY / "examples" / "switch_tasks.py", "demo"],
        ["-m", "ksm_hw.cli", "verify", "demo"],
        ["-m", "ksm_hw.cli", "report", "demo", "--runs", "10", "--html", "report.html"],
    ):
        done = run_in(environment, writable, *command)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (writable / "report.html").stat().st_size > 10_000
