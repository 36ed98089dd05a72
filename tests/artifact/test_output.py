"""Where an artifact may be written, and where it may not: nobody's files are lost."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_tasks import TENSORS, tiny_bundle, tiny_manifest, tiny_pack

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.artifact.modes import Precision
from ksm_hw.artifact.output import check_output, write_artifact
from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import add_task, load_bundle, rounded_bundle
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.task_pack import load_task_pack


def write(folder: Path, library: str = "library", *tasks: str) -> None:
    bundle = tiny_bundle(*(tasks or ("task",)))
    write_artifact(folder, tiny_manifest(bundle), lambda made: (made / "model.so").write_text(library) and None, bundle)


def snapshot(folder: Path) -> dict[str, str | bytes]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_ranges_change_no_byte_of_an_artifact(tmp_path: Path) -> None:
    bundle = tiny_bundle("task")
    found = Calibration("minmax", 3, 32, bundle.backbone_sha256, {"input": (-1.0, 1.0)})
    packs = {"task": dataclasses.replace(bundle.packs["task"], calibration=found)}
    for name, each in (("plain", bundle), ("calibrated", dataclasses.replace(bundle, packs=packs))):
        write_artifact(tmp_path / name, tiny_manifest(each), lambda made: (made / "model.so").touch(), each)
    assert snapshot(tmp_path / "plain") == snapshot(tmp_path / "calibrated")
    assert load_task_pack(tmp_path / "calibrated" / "tasks" / "task.safetensors").calibration is None


@pytest.mark.parametrize(
    ("precision", "at_rest", "version"),
    [("float32", "float32", 5), ("float32", "float16", 7), ("int8", "float32", 8), ("int8", "int8", 8)],
)
def test_the_format_is_as_old_as_what_it_holds(
    tmp_path: Path, precision: Precision, at_rest: BackbonePrecision, version: int
) -> None:
    """An older ksm-hw reads float32 artifacts still, and knows of others that it cannot."""
    bundle = rounded_bundle(tiny_bundle("task"), at_rest)
    manifest = dataclasses.replace(tiny_manifest(bundle), precision=precision, backbone_precision=at_rest)
    write_artifact(tmp_path, manifest, lambda made: (made / "model.so").touch(), bundle)
    assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == version
    assert json.loads((tmp_path / "bundle.json").read_text())["format_version"] == (1 if at_rest == "float32" else 2)
    assert read_manifest(tmp_path) == manifest
    assert load_bundle(tmp_path).backbone_precision == at_rest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an artifact, a bundle, and links to them."""
    write(tmp_path / "artifact")
    add_task(tmp_path / "bundles" / "bundle", tiny_pack("task"), TENSORS)
    (tmp_path / "bundles" / "bundle" / "photographs").mkdir()
    (tmp_path / "to-artifact").symlink_to("artifact")
    (tmp_path / "to-bundle").symlink_to("bundles/bundle")
    (tmp_path / "nowhere").symlink_to("not/there")
    (tmp_path / "file").write_text("a file")
    return tmp_path


@pytest.mark.parametrize(
    "output",
    [
        "bundles/bundle", "bundles/bundle/new", "bundles/bundle/photographs", "bundles/bundle/photographs/new/er",
        "bundles", "to-bundle", "to-bundle/new", "bundles/bundle/tasks/..", "artifact/../bundles/./bundle", ".",
    ],
)  # fmt: skip
def test_the_bundle_what_is_in_it_and_what_is_above_are_refused(place: Path, output: str) -> None:
    before = snapshot(place)
    with pytest.raises(UserError, match="which is read, would lie in each other"):
        check_output(place / output, [place / "bundles" / "bundle"])
    assert snapshot(place) == before


def test_the_bundle_under_another_mount_is_refused(place: Path) -> None:
    (place / "mounted").mkdir()
    bundle = place / "bundles" / "bundle"
    mounted = subprocess.run(["mount", "--bind", bundle, place / "mounted"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        for output in ("mounted", "mounted/new", "mounted/photographs"):
            with pytest.raises(UserError, match="would lie in each other"):
                check_output(place / output, [bundle])
    finally:
        subprocess.run(["umount", "--lazy", place / "mounted"], check=True)


@pytest.mark.parametrize("output", ["artifact/new", "to-artifact/new", "artifact/tasks", "artifact/tasks/a/b"])
def test_what_is_in_an_artifact_is_refused(place: Path, output: str) -> None:
    with pytest.raises(UserError, match=r"lies in .*/artifact, an artifact or a bundle"):
        check_output(place / output, [place / "bundles" / "bundle"])
    with pytest.raises(UserError, match=r"lies in .*/bundle, an artifact or a bundle"):
        check_output(place / "bundles" / "bundle" / "new", [])


def webapp(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "shop", "files": {"index.html": {}}, "format_version": 4}')
    (folder / "index.html").write_text("sources")


def artifact_with(name: str, folder: Path) -> None:
    write(folder)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")


FOREIGN = {
    "a web application": (webapp, "holds index.html and is no older artifact"),
    "a bundle": (lambda folder: add_task(folder, tiny_pack("task"), TENSORS), "is no older artifact"),
    "a foreign bundle.json": (lambda folder: (folder / "bundle.json").write_text("{}"), "holds bundle.json and is no"),
    "an empty folder in it": (lambda folder: (folder / "photographs").mkdir(), "holds photographs and is no older"),
    "a damaged manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "holds manifest.json and is"),
    "a note": (lambda folder: artifact_with("note.txt", folder), "holds note.txt, which does not belong"),
    "a hidden note": (lambda folder: artifact_with(".note", folder), "holds .note, which does not belong"),
    "a note among the tasks": (lambda folder: artifact_with("tasks/note", folder), "holds tasks/note, which does not"),
    "photographs": (lambda folder: artifact_with("photographs/1.jpg", folder), "holds photographs, which does not"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_refused_by_name_and_stays(tmp_path: Path, kind: str) -> None:
    make, message = FOREIGN[kind]
    folder = tmp_path / "output"
    folder.mkdir()
    make(folder)
    before = snapshot(folder)
    for write_or_check in (lambda: check_output(folder, []), lambda: write(folder)):
        with pytest.raises(UserError, match=message):
            write_or_check()
    assert snapshot(folder) == before and not any(path.name.startswith(".ksm-hw") for path in folder.iterdir())


def test_a_manifest_that_lists_what_lies_outside_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    (tmp_path / "thesis").write_text("years of work")
    path = tmp_path / "artifact" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["../thesis"] = content["files"]["model.so"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no older artifact"):
        write(tmp_path / "artifact")
    assert (tmp_path / "thesis").exists()


def test_a_link_in_an_artifact_is_not_followed(tmp_path: Path) -> None:
    """Its manifest lists what the link leads to."""
    write(tmp_path / "artifact")
    shutil.move(tmp_path / "artifact" / "tasks", tmp_path / "tasks")
    (tmp_path / "artifact" / "tasks").symlink_to(tmp_path / "tasks")
    with pytest.raises(UserError, match="holds tasks, which does not belong"):
        write(tmp_path / "artifact", "newer", "other")
    assert os.listdir(tmp_path / "tasks") == ["task.safetensors"]


@pytest.mark.parametrize("output", ["artifact", "to-artifact", "nowhere", "new/folder", "bundles/other"])
def test_an_older_artifact_an_empty_folder_and_a_link_are_written(place: Path, output: str) -> None:
    check_output(place / output, [place / "bundles" / "bundle"])
    write(place / output, "newer", "other")
    assert list(read_manifest(place / output).tasks) == ["other"]
    assert (place / output / "model.so").read_text() == "newer"
    assert os.listdir(place / output / "tasks") == ["other.safetensors"], "the older task is gone"
    assert all((place / name).is_symlink() for name in ("to-artifact", "to-bundle", "nowhere"))


def test_an_artifact_of_another_version_is_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 2}))
    write(tmp_path, "newer")
    assert read_manifest(tmp_path) and (tmp_path / "model.so").read_text() == "newer"


def test_a_file_and_a_folder_that_cannot_be_are_told_before(place: Path) -> None:
    for output, message in (("file", "file"), ("file/new", "Not a directory")):
        with pytest.raises(UserError, match=message):
            check_output(place / output, [])
    with pytest.raises(UserError, match="Cannot write /proc/artifact"):
        check_output(Path("/proc/artifact"), [])


def test_locks_and_what_a_killed_process_left_are_no_foreign_files(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ".ksm-hw-lock").write_text("1 killed")
    (tmp_path / ".ksm-hw-next" / "files").mkdir(parents=True)
    (tmp_path / ".ksm-hw-next" / "files" / "model.so").write_text("half")
    check_output(tmp_path, [])
    write(tmp_path, "newer")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not [name for name in json.loads((tmp_path / "manifest.json").read_text())["files"] if "ksm-hw" in name]
