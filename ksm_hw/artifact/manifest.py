"""An artifact: what `ksm-hw compile` writes, and all that a device needs.

    manifest.json          what was compiled, size and SHA-256 of every other file, and the SHA-256 of all that
    model.so               the library; of Relay one for each function that a task uses
    bundle.json, backbone.safetensors, tasks/, samples/     the bundle that was compiled
    runner/                with `--runner`: the program that runs it where there is no Python

So an artifact is a bundle too, and `ksm_hw.masks.bundle.load_bundle` reads it.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ksm_hw.artifact.modes import FoldMode, IntermediateRepresentation, Precision
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.files.places import leads_out
from ksm_hw.files.staging import read_whole
from ksm_hw.json_document import Count, OtherVersion, Positive, check_seal, read_json, read_version
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import backbone_precision_in

FORMAT_VERSIONS = (5, 7, 8)
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

    flops: Count
    bytes: Count
    shapes: tuple[tuple[Count, ...], ...]
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
        precision: what an inference computes in.
        ir: what the compiler went through: `relax`, or `relay`, whose libraries are one a function, FUNCTION.so.
        tvm_version: of the compiler.
        input_shape, output_shape: [N, 3, H, W], and [N, classes] with as many classes as the largest task.
        workspace_bytes: activations that the memory plan holds at once.
        tuning_sha256: of the tuning records whose schedules were taken (`records_sha256`); None without any.
        operators: those of an inference whose shapes are known, by their symbols in the library.
        tasks: what each task uses.
        backbone_precision: what the backbone's weights are rounded to at rest; every function takes them as float32.
        channels_left_out: how many channels of layers the backbone lacks, for they are 0 in all tasks; its hash is that
            of the weights without them.
    """

    backbone: str
    backbone_sha256: str
    target: str
    tvm_target: Mapping[str, Any]
    device: str
    cpu_features: tuple[str, ...]
    cores: tuple[Count, ...]
    fold: FoldMode
    precision: Precision
    ir: IntermediateRepresentation
    tvm_version: str
    input_shape: tuple[Positive, Positive, Positive, Positive]
    output_shape: tuple[Positive, Positive]
    workspace_bytes: Count
    tuning_sha256: str | None
    operators: Mapping[str, OperatorEntry]
    tasks: Mapping[str, TaskEntry]
    backbone_precision: BackbonePrecision = "float32"
    channels_left_out: Count = 0

    @property
    def format_version(self) -> int:
        """The least that has all of it: a ksm-hw from before int8, or before rounded backbones, reads what it can.

        Before 8 functions of int8 took soft values where they take their codes.
        """
        if self.precision == "int8":
            return 8
        return 5 if self.backbone_precision == "float32" else 7

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


@dataclass(frozen=True)
class FileEntry:
    """A file that the manifest lists: its size, and the SHA-256 of its bytes as 64 hexadecimal digits."""

    bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Files:
    """The part of a manifest that is about the folder."""

    files: dict[str, FileEntry]


def read_manifest(folder: Path) -> Manifest:
    """Reads an artifact's manifest and checks it, and every file against it.

    Raises:
        UserError: there is no artifact, it is of another version, a file, this one too, is missing, truncated or
            changed, or its bundle has the backbone in another type.
    """
    return read_whole(folder, MANIFEST, lambda: _read_manifest(folder))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        version = read_version(text, *FORMAT_VERSIONS)
        manifest = _with_names_once(read_json(text, Manifest))
        files = listed_files(text)
        if manifest.precision == "int8" and version != manifest.format_version:
            raise OtherVersion(version)
        if version < manifest.format_version:
            raise ValueError(f"format version {version} knows no backbone in {manifest.backbone_precision}")
        if not manifest.tasks:
            raise ValueError("it names no tasks")
        packs = (f"tasks/{task}.safetensors" for task in manifest.tasks)
        if unlisted := {*manifest.libraries, "bundle.json", *packs} - files.keys():
            raise ValueError(f"it does not list {', '.join(sorted(unlisted))}")
        check_seal(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"No artifact at {folder}: manifest.json is missing. {_where_else(folder)}") from error
    except OtherVersion as error:
        known = ", ".join(map(str, FORMAT_VERSIONS))
        raise UserError(
            f"{path} has {error}; this ksm-hw reads {known}, of int8 {FORMAT_VERSIONS[-1]} alone. Compile the bundle "
            "again, or run it with the ksm-hw that wrote it."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Copy the artifact again.") from error
    for name, entry in files.items():
        _check_file(folder / name, entry)
    if (found := backbone_precision_in(folder)) != manifest.backbone_precision:
        raise UserError(
            f"{path} has a backbone in {manifest.backbone_precision}, and {folder / 'bundle.json'} one in {found}. "
            "Copy the artifact again."
        )
    return manifest


def _with_names_once(manifest: Manifest) -> Manifest:
    """The names of parameters, which tasks with one layout of masks share, are in memory once."""
    known = {entry.parameters: entry.parameters for entry in manifest.tasks.values()}
    tasks = {
        task: dataclasses.replace(entry, parameters=known[entry.parameters]) for task, entry in manifest.tasks.items()
    }
    return dataclasses.replace(manifest, tasks=tasks)


def _where_else(folder: Path) -> str:
    """What to do where a folder holds no artifact: with `--fold bake` its folders hold one each."""
    inside = sorted(shlex.quote(str(path.parent)) for path in folder.glob(f"*/{MANIFEST}"))
    return f"Give one that is inside: {', '.join(inside)}." if inside else "Make one with `ksm-hw compile`."


def listed_files(text: str | bytes) -> dict[str, FileEntry]:
    """The files that a manifest's text lists, by their names, none of which leads out of the folder.

    Raises:
        ValueError: a name does, or the text is no manifest.
    """
    files = read_json(text, _Files).files
    for name in files:
        if leads_out(name):
            raise ValueError(f"it lists {name!r}, which lies outside")
    return files


def _check_file(path: Path, expected: FileEntry) -> None:
    if not path.is_file():
        raise UserError(f"The artifact lacks {path}. It was copied incompletely; copy it again.")
    if path.stat().st_size != expected.bytes:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes; the manifest expects {expected.bytes}. It was copied "
            "incompletely; copy the artifact again."
        )
    found = sha256_of_file(path)
    if found != expected.sha256:
        raise UserError(f"{path} has SHA-256 {found}; the manifest expects {expected.sha256}. Copy the artifact again.")
