"""Where an artifact is written to: what may be replaced there, and what may not."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.manifest import MANIFEST, FileEntry, Manifest, listed_files
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.files.places import lies_in, overlap
from ksm_hw.files.staging import OWN_NAMES, changed_folder, staged_files
from ksm_hw.files.written import check_file, check_folder, explained
from ksm_hw.json_document import read_json, sealed
from ksm_hw.masks.bundle import Bundle, is_bundle, save_bundle


@dataclass(frozen=True)
class _AnyManifest:
    """By these a manifest is known as that of an artifact, of whichever version of ksm-hw."""

    format_version: int
    backbone: str
    backbone_sha256: str
    target: str
    tvm_target: dict[str, Any]
    fold: str
    tasks: dict[str, Any]


def check_output(folder: Path, inputs: Iterable[Path]) -> None:
    """Checks, before it is made, that an artifact may be written into a folder, and that it can be.

    Args:
        folder: to write.
        inputs: folders that are read; the artifact must not be one of them, or lie in one, or hold one.

    Raises:
        UserError: it holds something else than an older artifact, lies in one or in a bundle, or cannot be written.
    """
    for other in inputs:
        if overlap(folder, other):
            raise UserError(
                f"The artifact {folder} and {other}, which is read, would lie in each other. Give another --output."
            )
    if (owner := _owner(folder)) is not None:
        raise UserError(f"{folder} lies in {owner}, an artifact or a bundle. Give another --output.")
    _replaceable_files(folder)
    check_folder(folder)


def check_output_file(file: Path, option: str, inputs: Iterable[Path]) -> None:
    """Checks, before work, that a file can be written, and takes the place of none that ksm-hw reads or keeps.

    Args:
        file: to write.
        option: that names it, for messages.
        inputs: folders and files that are read.

    Raises:
        UserError: it is an input, lies in one, in an artifact or in a bundle, or cannot be written.
    """
    owner = next((each for each in inputs if lies_in(file, each)), None) or _owner(file)
    if owner is not None:
        kind = "artifact " if _file_list(owner) is not None else "bundle " if is_bundle(owner) else ""
        what = f"would lie in the {kind}{owner}" if owner.is_dir() else f"would replace {owner}, which is read"
        raise UserError(f"{file} {what}. Give another {option}.")
    check_file(file)


def _owner(path: Path) -> Path | None:
    """The artifact or the bundle that a path lies in."""
    parents = Path(os.path.realpath(path)).parents
    return next((each for each in parents if is_bundle(each) or _file_list(each) is not None), None)


def check_apart(output: Path, dump: Path) -> None:
    """Checks that a dump is not written into an artifact, nor an artifact into a dump.

    Raises:
        UserError: it would be.
    """
    if overlap(output, dump):
        raise UserError(f"The artifact {output} and the dump {dump} would lie in each other. Dump into another folder.")


def write_artifact(folder: Path, manifest: Manifest, export: Callable[[Path], None], bundle: Bundle) -> None:
    """Writes an artifact, whole or not at all, in the place of an older one.

    Args:
        folder: to write.
        manifest: what the artifact is.
        export: writes the libraries, and what else belongs to the artifact, into a folder that has the bundle.
        bundle: backbone and tasks; their ranges are left out.

    Raises:
        UserError: the folder holds something else, or cannot be written, or `export` raises it.
    """
    folder = Path(os.path.realpath(folder))
    with changed_folder(folder), staged_files(folder, MANIFEST, _replaceable_files(folder)) as staging:
        save_bundle(bundle if manifest.precision == "int8" else _without_ranges(bundle), staging)
        export(staging)
        files = {
            str(path.relative_to(staging)): dataclasses.asdict(FileEntry(path.stat().st_size, sha256_of_file(path)))
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        content = {"format_version": manifest.format_version, **dataclasses.asdict(manifest), "files": files}
        (staging / MANIFEST).write_text(json.dumps(sealed(content), indent=2) + "\n")


def _without_ranges(bundle: Bundle) -> Bundle:
    """Float code reads no ranges, and the ksm-hw of a device may be one that does not know packs with them."""
    packs = {task: dataclasses.replace(pack, calibration=None) for task, pack in bundle.packs.items()}
    return dataclasses.replace(bundle, packs=packs)


def _replaceable_files(folder: Path) -> list[str]:
    """The files of an older artifact, by their names; none where the folder is empty or not there.

    Raises:
        UserError: there is something else, or a file that is not the artifact's; the message names the first.
    """
    if not os.path.exists(folder):
        return []
    listed = _file_list(folder)
    with explained(folder):
        found = sorted(set(os.listdir(folder)) - OWN_NAMES)
        if listed is None and found:
            raise UserError(
                f"{folder} holds {found[0]} and is no older artifact, so it is not replaced. Give another "
                "--output, or remove it."
            )
        ours = {MANIFEST, *(listed or {})}
        if foreign := _first_foreign(folder, ours):
            raise UserError(
                f"{folder} holds {foreign}, which does not belong to the artifact there, so the artifact is not "
                "replaced. Move that file elsewhere, or give another --output."
            )
    return sorted(name for name in ours if os.path.lexists(folder / name))


def _first_foreign(folder: Path, ours: set[str]) -> str | None:
    """What a folder holds beside our files and the folders that these lie in."""
    folders = {str(parent) for name in ours for parent in Path(name).parents}
    for at, below, files in os.walk(folder):
        place = Path(at).relative_to(folder)
        if not place.parts:
            below[:] = sorted(set(below) - OWN_NAMES)
            files = sorted(set(files) - OWN_NAMES)
        for name in sorted([*below, *files]):
            path = place / name
            is_link_to_folder = name in below and (folder / path).is_symlink()
            expected = folders if name in below and not is_link_to_folder else ours
            if str(path) not in expected:
                return str(path)
    return None


def _file_list(folder: Path) -> Iterable[str] | None:
    """The files that the manifest of an artifact lists; None where there is no manifest, or it is no artifact's."""
    try:
        text = (folder / MANIFEST).read_bytes()
        read_json(text, _AnyManifest)
        return listed_files(text)
    except (OSError, ValueError):
        return None
