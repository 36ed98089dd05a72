"""Makes what the engines read, once: the networks, and of each the file of each engine. Runs in the parent."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers.catalogue import ENVIRONMENTS, PROJECT, RECIPE, Engine
from peers.environments import prepare_environment, python_of
from peers.failures import EngineError, last_words
from peers.places import BENCHMARKS, NETWORKS

SECONDS_TO_CONVERT = 1200
LOWER_PRIORITY = 10  # Of nice: making files is not measured, and others may be at work.


def prepare_network(backbone: str, tasks: int) -> Path:
    """The folder of a network (`networks.py`), made unless it is there.

    Raises:
        EngineError: it cannot be made.
    """
    folder = NETWORKS / (backbone if tasks == 1 else f"{backbone}-{tasks}-tasks")
    manifest = folder / "manifest.json"
    if not manifest.exists() or json.loads(manifest.read_text()).get("recipe") != RECIPE:
        _run_module(PROJECT, "peers.networks", backbone, str(folder), str(tasks))
    return folder


def prepare_engine(engine: Engine, task_folder: Path) -> None:
    """Installs an engine and makes the files that it reads of a task, unless they are there.

    Raises:
        EngineError: that fails; the message is the reason.
    """
    prepare_environment(engine.environment)
    for module, environment in engine.converters:
        prepare_environment(environment)
        source = BENCHMARKS / "peers" / "engines" / f"{module}.py"
        made_by: dict[str, Any] = {
            "packages": ENVIRONMENTS[environment],
            "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        made_by = json.loads(json.dumps(made_by))
        marker = task_folder / f"{module}.json"
        if not marker.exists() or json.loads(marker.read_text()) != made_by:
            _run_module(environment, "peers.convert", module, str(task_folder))
            marker.write_text(json.dumps(made_by) + "\n")


def compile_artifact(network: Path, artifact: Path, threads: int, tasks: int, tuned: Path | None) -> None:
    """Compiles a network with ksm-hw, always anew: what is measured is the compiler as it is.

    Raises:
        EngineError: it cannot be compiled.
    """
    arguments = [str(network / "bundle"), str(artifact), str(threads), str(tasks)]
    _run_module(PROJECT, "peers.compile_artifact", *arguments, *([str(tuned)] if tuned else []))


def child_environment(variables: dict[str, str] | None = None) -> dict[str, str]:
    """Environment variables of a child: this package is found, and caches stay under build/."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(NETWORKS.parent / "inductor")}
    return found | caches | {"PYTHONPATH": str(BENCHMARKS)} | (variables or {})


def _run_module(environment: str, module: str, *arguments: str) -> None:
    command = [str(python_of(environment)), "-m", module, *arguments]
    if sys.platform != "win32":
        command = ["nice", "-n", str(LOWER_PRIORITY), *command]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_CONVERT,
            cwd=BENCHMARKS,
            # Ctrl-C stops this program, which then stops the child; else the child's traceback fills the terminal.
            start_new_session=True,
            env=child_environment({"PATH": f"{python_of(environment).parent}{os.pathsep}{os.environ.get('PATH', '')}"}),
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{' '.join([module, *arguments[:1]])} took more than {SECONDS_TO_CONVERT} s") from error
    if done.returncode != 0:
        log = NETWORKS.parent / f"{module}-{'-'.join(Path(argument).name for argument in arguments)}.log"
        log.write_text(done.stdout)
        raise EngineError(f"cannot be converted: {last_words(done.stdout)} (all of it: build/peers/{log.name})")
