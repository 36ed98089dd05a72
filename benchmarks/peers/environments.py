"""Virtual environments of the peers: made once, with the versions that the catalogue pins."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from peers.catalogue import ENVIRONMENTS, PROJECT
from peers.failures import EngineError, last_words
from peers.places import ENVIRONMENTS as FOLDER

SECONDS_TO_INSTALL = 1800


def python_of(environment: str) -> Path:
    """The Python of an environment."""
    if environment == PROJECT:
        return Path(sys.executable)
    return FOLDER / environment / "bin" / "python"


def prepare_environment(environment: str) -> None:
    """Makes an environment, unless it is there with the same packages.

    Raises:
        EngineError: the packages cannot be installed.
    """
    if environment == PROJECT:
        return
    folder, wanted = FOLDER / environment, list(ENVIRONMENTS[environment])
    marker = folder / "packages.json"
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _checked([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _checked([*pip, *wanted])
    # Last, so that an environment that was left half made is made again.
    marker.write_text(json.dumps(wanted) + "\n")


def _checked(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"its packages were not installed within {SECONDS_TO_INSTALL} s") from error
    if done.returncode != 0:
        raise EngineError(f"cannot be installed: {last_words(done.stderr)}")
