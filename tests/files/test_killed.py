"""A process that is killed at any system call that writes leaves what was there, or what it made."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_processes import killed_at_each_write
from tiny_tasks import TENSORS, tiny_bundle, tiny_manifest, tiny_pack

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.artifact.output import write_artifact
from ksm_hw.files.staging import OWN_NAMES, files_in
from ksm_hw.files.written import written_file
from ksm_hw.masks.bundle import add_task, load_bundle


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    """A folder in memory, where there is one: some hundred writings wait for no disk there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Path]:
    """Two folders of what stands for sample images, with one name in common."""
    folders = {"older": ["00-cat.png", "01-dog.png"], "newer": ["00-cat.png", "02-dog.png"]}
    for folder, names in folders.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(folder)
    return {folder: tmp_path / folder for folder in folders}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def test_a_file(fast_disk: Path) -> None:
    path = fast_disk / "file"

    def write() -> None:
        with written_file(path) as temporary:
            temporary.write_text("newer")

    def check() -> None:
        assert path.read_text() in ("older", "newer")

    assert killed_at_each_write(write, lambda: path.write_text("older") and None, check) > 5


def test_an_artifact_that_replaces_another(fast_disk: Path, samples: dict[str, Path]) -> None:
    """The older has a task, a file and samples that the newer lacks, and the other way round."""
    folder = fast_disk / "artifact"
    older, newer = (
        tiny_bundle("both", f"{name}-task", samples=samples[name].parent / f"of-{name}") for name in ("older", "newer")
    )
    for name, bundle in (("older", older), ("newer", newer)):
        for task in bundle.packs:
            shutil.copytree(samples[name], samples[name].parent / f"of-{name}" / task)

    def write(name: str, at: Path) -> None:
        def export(staging: Path) -> None:
            (staging / "model.so").write_text(name)
            (staging / f"{name}.cl").write_text(name)

        bundle = {"older": older, "newer": newer}[name]
        write_artifact(at, tiny_manifest(bundle), export, bundle)

    for name in ("older", "newer"):
        write(name, fast_disk / name)
    whole = [contents(fast_disk / name) for name in ("older", "newer")]
    found = []

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(fast_disk / "older", folder)

    def check() -> None:
        read_manifest(folder)
        found.append(whole.index(contents(folder)))
        write("newer", folder)
        assert contents(folder) == whole[1] and not any((folder / name).exists() for name in OWN_NAMES)

    assert killed_at_each_write(lambda: write("newer", folder), prepare, check) > 50
    assert set(found) == {0, 1}


def test_a_new_artifact(fast_disk: Path) -> None:
    """Nothing, or all of it; what is left in between hinders no second try."""
    folder, bundle = fast_disk / "new" / "artifact", tiny_bundle("task")

    def write() -> None:
        write_artifact(folder, tiny_manifest(bundle), lambda staging: (staging / "model.so").touch(), bundle)

    def check() -> None:
        if (folder / "manifest.json").exists() or any(folder.glob(".ksm-hw-ready")):
            read_manifest(folder)
        else:
            assert not folder.exists() or files_in(folder) == []
        write()
        read_manifest(folder)

    assert killed_at_each_write(write, lambda: shutil.rmtree(folder.parent, ignore_errors=True), check) > 30


def test_a_task_that_replaces_another(fast_disk: Path, samples: dict[str, Path]) -> None:
    folder = fast_disk / "bundle"
    older, newer = tiny_pack("task", 0.25), tiny_pack("task", 0.75)
    states = {0.25: samples["older"], 0.75: samples["newer"]}
    add_task(fast_disk / "older", tiny_pack("other"), TENSORS)
    add_task(fast_disk / "older", older, TENSORS, samples["older"])
    found = set()

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(fast_disk / "older", folder)

    def check() -> None:
        bundle = load_bundle(folder)
        assert list(bundle.packs) == ["other", "task"]
        accuracy = bundle.packs["task"].facts["accuracy"]
        assert contents(folder / "samples" / "task") == contents(states[accuracy])
        found.add(accuracy)

    assert killed_at_each_write(lambda: add_task(folder, newer, TENSORS, samples["newer"]), prepare, check) > 30
    assert found == {0.25, 0.75}
