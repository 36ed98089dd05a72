"""Relay's own environment: a folder with TVM 0.19 and what it needs, which only Relay's processes see.

They run this Python and find that folder before all else; torch and ksm-hw itself are the main environment's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.files.locks import locked_folder
from ksm_hw.files.staging import changed_folder, files_in, staged_files
from ksm_hw.files.written import explained
from ksm_hw.user_folders import data_folder

# The last TVM with Relay, and what it needs: for each package its version and the hashes of its files.
TVM_VERSION = "0.19.0"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
# Modules that say they are missing, for packages of the main environment that are optional and slow to import.
LEFT_OUT = Path(__file__).parent / "left_out"


def environment_folder() -> Path:
    """Where the environment lies, whether or not it is there."""
    return data_folder(f"relay-{sys.implementation.cache_tag}")


def install() -> Path:
    """Makes the environment, whole or not at all, in the place of one of another version; returns its folder.

    Raises:
        UserError: pip is missing or finds no such packages for this machine, or the folder cannot be written.
    """
    folder = environment_folder()
    if is_installed():
        return folder
    with changed_folder(folder):
        if is_installed():  # By another process meanwhile.
            return folder
        with staged_files(folder, REQUIREMENTS.name, files_in(folder)) as staging:
            options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--target", str(staging)]
            # Wheels alone: what is built from sources is not what was pinned. Not compiled: most of their 3,000 modules
            # are never imported, and Python compiles those that are.
            command = [sys.executable, "-m", "pip", "install", *options, "--only-binary", ":all:", "--no-compile"]
            done = subprocess.run([*command, "-r", str(REQUIREMENTS)], capture_output=True, text=True, errors="replace")
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
                reason = next((line for line in said if line.startswith("ERROR")), said[-1])
                raise UserError(f"pip cannot install TVM 0.19: {reason}. Nothing was left behind.")
            shutil.copy(REQUIREMENTS, staging)
    return folder


def remove() -> bool:
    """Removes the environment; whether there was one.

    Raises:
        UserError: it cannot be removed.
    """
    folder = environment_folder()
    if not folder.is_dir():
        return False
    with locked_folder(folder), explained(folder):
        shutil.rmtree(folder)
    return True


def is_installed() -> bool:
    """Whether the environment is there, with the packages that this ksm-hw asks for."""
    installed = environment_folder() / REQUIREMENTS.name
    return installed.is_file() and installed.read_bytes() == REQUIREMENTS.read_bytes()


def check_installed() -> None:
    """Checks that the environment is there.

    Raises:
        UserError: it is not, or it is of another version of ksm-hw.
    """
    if not is_installed():
        state = "is of another version of ksm-hw" if environment_folder().is_dir() else "is not installed"
        raise UserError(f"Relay {state}. Install it: ksm-hw relay install. Or compile with --ir relax.")


def process_variables(only_runs: bool = False) -> dict[str, str]:
    """The environment variables of a process of this Python that shall see Relay's environment.

    Args:
        only_runs: whether it loads TVM without the compiler, which takes four times the memory.

    Raises:
        UserError: as `check_installed`.
    """
    check_installed()
    paths = [str(environment_folder()), str(LEFT_OUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        # Else TVM downloads schedules that others tuned, and its output depends on what it found.
        "TOPHUB_LOCATION": "NONE",
    }
    return variables | ({"TVM_USE_RUNTIME_LIB": "1"} if only_runs else {})
