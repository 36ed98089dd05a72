"""An artifact: what `ksm-hw compile` writes, and all that a device needs.

    manifest.json          what was compiled, and size and SHA-256 of every other file
    model.so               the library; of Relay one for each function that a task uses
    bundle.json, backbone.safetensors, tasks/, samples/     the bundle that was compiled
    runner/                with `--runner`: the program that runs it where there is no Python

So an artifact is a bundle too, and `ksm_hw.masks.bundle.load_bundle` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.modes import FoldMode, IntermediateRepresentation
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.files.staging import read_whole

FORMAT_VERSION = 4
LIBRARY = "model.so"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TaskEntry:
    """The functions of the library that a task uses, and the names of what they take, in order.

    `rewrite` is None where no weights are rewritten: with `fused` `main` takes the parameters, with `bake` nothing.
    """

    main: str
    rewrite: str | None
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class OperatorEntry:
    """An operator of an inference.

    Attributes:
        flops, bytes: of one call: floating-point operations, and bytes of its arguments and results.
        shapes: of these, the results last.
        schedule: the rule that scheduled it and in which way, for a person; empty where no rule did.
    """

    flops: int
    bytes: int
    shapes: tuple[tuple[int, ...], ...]
    schedule: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is.

    Attributes:
        backbone, backbone_sha256: the network and its weights.
        target: name of the target; `tvm_target` the dictionary for TVM; `device` the TVM device.
        cpu_features: vector instructions that the code may use, by their names in /proc/cpuinfo.
        cores: numbers of the CPU's cores that the session pins its threads to; empty for a CPU whose cores are alike.
        fold: `switch`, `bake` or `fused`.
        precision: dtype of the arithmetic.
        ir: what the compiler went through: `relax`, or `relay`, whose libraries are one a function, FUNCTION.so.
        tvm_version: of the compiler.
        input_shape, output_shape: [N, 3, H, W], and [N, classes] with as many classes as the largest task.
        workspace_bytes: activations that the memory plan holds at once.
        operators: those of an inference whose shapes are known, by their symbols in the library.
        tasks: what each task uses.
    """

    backbone: str
    backbone_sha256: str
    target: str
    tvm_target: Mapping[str, Any]
    device: str
    cpu_features: tuple[str, ...]
    cores: tuple[int, ...]
    fold: FoldMode
    precision: str
    ir: IntermediateRepresentation
    tvm_version: str
    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, int]
    workspace_bytes: int
    operators: Mapping[str, OperatorEntry]
    tasks: Mapping[str, TaskEntry]

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the compiled libraries' files."""
        if self.ir == "relax":
            return (LIBRARY,)
        functions = {name for entry in self.tasks.values() for name in (entry.main, entry.rewrite) if name is not None}
        return tuple(sorted(f"{function}.so" for function in functions))

    @property
    def cpu(self) -> Mapping[str, Any]:
        """The TVM dictionary of the CPU: that of the target, or of a GPU's host."""
        return self.tvm_target if self.device == "cpu" else self.tvm_target["host"]


def read_manifest(folder: Path) -> Manifest:
    """Reads an artifact's manifest and checks every file against it.

    Raises:
        UserError: there is no artifact, it is of another version, or a file is missing, truncated or changed.
    """
    return read_whole(folder, MANIFEST, lambda: _read_manifest(folder))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        if content.pop("format_version") != FORMAT_VERSION:
            raise UserError(f"{path} is of another version of ksm-hw. Compile the bundle again.")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in checked_files(content).items()}
        del content["files"]
        tasks = {
            task: TaskEntry(entry["main"], entry["rewrite"], tuple(entry["parameters"]))
            for task, entry in content.pop("tasks").items()
        }
        if not tasks:
            raise ValueError("it names no tasks")
        for key in ("cpu_features", "cores", "input_shape", "output_shape"):
            content[key] = tuple(content[key])
        operators = {
            symbol: OperatorEntry(entry["flops"], entry["bytes"], tuple(map(tuple, entry["shapes"])), entry["schedule"])
            for symbol, entry in content.pop("operators").items()
        }
        manifest = Manifest(tasks=tasks, operators=operators, **content)
        packs = (f"tasks/{task}.safetensors" for task in tasks)
        if unlisted := {*manifest.libraries, "bundle.json", *packs} - files.keys():
            raise ValueError(f"it does not list {', '.join(sorted(unlisted))}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"No artifact at {folder}: manifest.json is missing. Make one with `ksm-hw compile`."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Copy the artifact again.") from error
    for name, (size, sha256) in files.items():
        _check_file(folder / name, size, sha256)
    return manifest


def checked_files(content: dict[str, Any]) -> dict[str, Any]:
    """The files that a manifest lists, by their names, none of which leads out of the folder.

    Raises:
        ValueError: a name does; KeyError: there is no list.
    """
    files: dict[str, Any] = content["files"]
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"it lists {name}, which lies outside")
    return files


def _check_file(path: Path, size: int, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"The artifact lacks {path}. It was copied incompletely; copy it again.")
    if path.stat().st_size != size:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes; the manifest expects {size}. It was copied incompletely; "
            "copy the artifact again."
        )
    found = sha256_of_file(path)
    if found != sha256:
        raise UserError(f"{path} has SHA-256 {found}; the manifest expects {sha256}. Copy the artifact again.")
