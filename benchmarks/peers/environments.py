"""The environments of the engines: made once; a peer's is a virtual one, with the versions that the catalogue pins."""

import json
import os
import shutil
import sys
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.runtime.relay import environment as relay
from peers.catalogue import ENVIRONMENTS, PROJECT, RELAY
from peers.children import run_child
from peers.failures import EngineError, last_words
from peers.places import ENVIRONMENTS as FOLDER

SECONDS_TO_INSTALL = 1800


def python_of(environment: str) -> Path:
    """The Python of an environment."""
    if environment in (PROJECT, RELAY):
        return Path(sys.executable)
    return FOLDER / environment / "bin" / "python"


def variables_of(environment: str) -> dict[str, str]:
    """The variables by which a process of its Python becomes one of the environment that is there."""
    if environment != RELAY:
        return {}
    wanted = relay.process_variables(only_runs=True)
    return {name: value for name, value in wanted.items() if os.environ.get(name) != value}


def prepare_environment(environment: str) -> None:
    """Makes an environment, unless it is there with the same packages.

    Raises:
        EngineError: the packages cannot be installed.
    """
    if environment == PROJECT:
        return
    if environment == RELAY:
        try:
            relay.install()
        except UserError as error:
            raise EngineError(str(error)) from error
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
    status, output = run_child(command, Path(sys.executable).parent, SECONDS_TO_INSTALL)
    if status != 0:
        raise EngineError(f"cannot be installed: {last_words(output)}")
