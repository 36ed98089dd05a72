"""Makes what the engines read, once: the networks, and of each the file of each engine. Runs in the parent."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peers.catalogue import CLASSES, CLASSES_OF_TASKS, ENVIRONMENTS, PROJECT, RECIPE, Engine
from peers.children import run_child
from peers.engines.ksm_hw_engine import artifact_folder
from peers.environments import prepare_environment, python_of
from peers.failures import EngineError, last_words
from peers.places import BENCHMARKS, NETWORKS, PEERS, TUNED

SECONDS_TO_CONVERT = 1200
TASK = "task-00"  # The one that a network of one task has.
_FAILURE = "failure"
LOWER_PRIORITY = 10  # Of nice: making files is not measured, and others may be at work.


def prepare_network(backbone: str) -> Path:
    """The folder of a network with one task (`networks.py`), made unless it is there.

    Raises:
        EngineError: it cannot be made.
    """
    return _prepared(NETWORKS / backbone, backbone, 1, CLASSES)


def prepare_tasks(backbone: str, tasks: int) -> Path:
    """The folder of a network with several tasks, made unless it is there with as many or more.

    Raises:
        EngineError: it cannot be made.
    """
    folder = NETWORKS / f"{backbone}-tasks"
    return _prepared(folder, backbone, tasks, CLASSES_OF_TASKS)


def _prepared(folder: Path, backbone: str, tasks: int, classes: int) -> Path:
    manifest = folder / "manifest.json"
    made = json.loads(manifest.read_text()) if manifest.exists() else {}
    if made.get("recipe") != RECIPE or made["tasks"] < tasks:
        _run_module(PROJECT, "peers.networks", backbone, str(folder), str(tasks), str(classes))
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
            "packages": ENVIRONMENTS.get(environment, ()),
            "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        made_by = json.loads(json.dumps(made_by))
        marker = _marker(task_folder, module)
        if not marker.exists() or json.loads(marker.read_text()) != made_by:
            try:
                _run_module(environment, "peers.convert", module, str(task_folder))
            except EngineError as error:
                marker.write_text(json.dumps({**made_by, _FAILURE: str(error)}) + "\n")
                raise
            marker.write_text(json.dumps(made_by) + "\n")


def check_prepared(engine: Engine, task_folder: Path) -> None:
    """Raises EngineError unless `prepare_engine` made what an engine reads of a task; the message is why it did not."""
    for module, _environment in engine.converters:
        marker = _marker(task_folder, module)
        if not marker.exists():
            raise EngineError(f"was not prepared: build/peers has no {task_folder.parent.name}/{marker.name}")
        if failure := json.loads(marker.read_text()).get(_FAILURE):
            raise EngineError(failure)


def _marker(task_folder: Path, module: str) -> Path:
    """What a converter's file was made by, or why it was not."""
    return task_folder / f"{module}.json"


def compile_artifact(
    network: Path,
    variant: str,
    threads: int,
    tasks: int = 1,
    trials: int = 0,
    checkout: Path | None = None,
    cpu: str = "",
) -> Path:
    """Compiles a network with ksm-hw, always anew: what is measured is the compiler as it is. Returns the artifact.

    `variant` is that of the engine; for "tuned" it is tuned with so many trials before, of which those that earlier
    runs measured count. `checkout` is another one of ksm-hw, which compiles in this one's place. `cpu`, LLVM's name of
    one, is what it compiles for in this machine's place.

    Raises:
        EngineError: it cannot be compiled.
    """
    artifact = artifact_folder(network, threads, variant, tasks)
    records = TUNED / f"{network.name}-{threads}-threads"
    numbers = map(str, (threads, tasks, trials if variant == "tuned" else 0))
    variables = {} if checkout is None else {"PYTHONPATH": str(checkout)}
    bundle = network / ("bundle-int8" if variant == "int8" else "bundle")
    arguments = (str(bundle), str(artifact), variant, *numbers, str(records), *filter(None, [cpu]))
    _run_module(PROJECT, "peers.compile_artifact", *arguments, variables=variables)
    return artifact


def _run_module(
    environment: str, module: str, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
) -> None:
    python = python_of(environment)
    command = ["nice", "-n", str(LOWER_PRIORITY), str(python), "-m", module, *arguments]
    status, output = run_child(command, python.parent, SECONDS_TO_CONVERT, variables)
    if status != 0:
        log = PEERS / f"{module}-{'-'.join(Path(argument).name for argument in arguments)}.log"
        log.write_text(output)
        raise EngineError(f"cannot be made: {last_words(output)} (all of it: build/peers/{log.name})")
