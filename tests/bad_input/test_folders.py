"""Folders and files of users through the command line: none is lost, and what cannot be written is told before."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_tasks import SMALL_NETWORK
from tiny_tasks import TENSORS, tiny_pack

from ksm_hw import cli
from ksm_hw.masks.bundle import Bundle, add_task, load_bundle

Fails = Callable[..., str]
COMPILE = ("compile", "--target", "host")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs `ksm-hw` with what must fail before any work, changes nothing, and returns its one message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ksm-hw", *map(str, arguments)])
        before = contents(tmp_path)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        assert exit_.value.code == 2 and output.out == "" and contents(tmp_path) == before
        return output.err

    return run


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No target is loaded, for which TVM is imported, and nothing is compiled."""

    def fail(*arguments: object, **options: object) -> None:
        pytest.fail("the folders were not checked first")

    monkeypatch.setattr("ksm_hw.toolchains.targets.load_target", fail)
    monkeypatch.setattr("ksm_hw.compiler.compile.compile_bundle", fail)


@pytest.mark.usefixtures("no_work")
def test_compile_into_the_bundle(fails: Fails, copied_bundle: Path) -> None:
    (copied_bundle / "photographs").mkdir()
    (copied_bundle / "photographs" / "1.jpg").write_text("")
    for output in (copied_bundle, copied_bundle / "photographs", copied_bundle / "new", ".", copied_bundle / ".."):
        for task in ("kernel-task", "all"):
            message = fails(*COMPILE, "--bundle", copied_bundle, "--task", task, "-o", output)
            assert "would lie in each other" in message


@pytest.mark.usefixtures("no_work")
def test_compile_an_artifact_into_itself(fails: Fails, copied_artifact: Path) -> None:
    """An artifact is a bundle too."""
    message = fails(*COMPILE, "--bundle", copied_artifact, "--task", "all", "-o", copied_artifact)
    assert "would lie in each other" in message


@pytest.mark.usefixtures("no_work")
def test_compile_where_somebody_s_files_lie(fails: Fails, bundle_folder: Path, copied_artifact: Path) -> None:
    os.makedirs("webapp")
    Path("webapp", "manifest.json").write_text('{"name": "shop"}')
    Path("webapp", "index.html").write_text("sources")
    (copied_artifact / "note.txt").write_text("mine")
    options = (*COMPILE, "--bundle", bundle_folder, "--task", "all", "-o")
    assert "holds index.html" in fails(*options, "webapp")
    assert "holds note.txt" in fails(*options, copied_artifact)
    assert "lies in" in fails(*options, copied_artifact / "below")
    assert "Cannot write /proc/artifact" in fails(*options, "/proc/artifact")


@pytest.mark.usefixtures("no_work")
def test_each_folder_of_baked_tasks_is_looked_at_first(fails: Fails, bundle_folder: Path) -> None:
    os.makedirs("baked/other-task")
    Path("baked/other-task/note.txt").write_text("mine")
    message = fails(*COMPILE, "--bundle", bundle_folder, "--task", "all", "--fold", "bake", "-o", "baked")
    assert "baked/other-task holds note.txt" in message


@pytest.mark.usefixtures("no_work")
def test_what_is_said_of_a_dump_needs_no_compiler(fails: Fails, bundle_folder: Path) -> None:
    options = (*COMPILE, "--bundle", bundle_folder, "--task", "all", "-o", "artifact")
    assert "--dump FOLDER" in fails(*options, "--dump-assembly")
    assert "Dump into another folder" in fails(*options, "--dump", "artifact/dump")
    assert "holds no older dump" in fails(*options, "--dump", bundle_folder)
    assert "Cannot write /proc/dump" in fails(*options, "--dump", "/proc/dump")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="such a machine can measure for boards")
def test_tune_for_a_board_that_is_not_named(fails: Fails, bundle_folder: Path) -> None:
    options = ("--bundle", bundle_folder, "-o", "records")
    message = (
        f"{{}} is a board of aarch64, and this machine is {platform.machine()}: say where to measure, by --tracker"
    )
    assert message.format("rpi5") in fails("tune", "--target", "rpi5", *options)
    assert message.format("mali") in fails("tune", "--target", "mali", *options)
    assert message.format("rpi4") in fails("sweep", "--targets", "host,rpi4", *options)


@pytest.mark.usefixtures("no_work")
def test_tune_where_it_cannot_write(fails: Fails, bundle_folder: Path, tmp_path: Path) -> None:
    options = ("tune", "--target", "host", "--bundle", bundle_folder, "-o")
    Path("note.txt").write_text("mine")
    assert "holds no tuning records" in fails(*options, tmp_path)
    assert "holds no tuning records" in fails(*options, "note.txt")
    assert "Cannot write /proc/records" in fails(*options, "/proc/records")


def test_train_where_no_task_can_be_written(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, copied_artifact: Path, copied_bundle: Path
) -> None:
    monkeypatch.setattr("ksm_hw.learning.datasets.load_task_data", lambda data: pytest.fail("the images were read"))
    os.makedirs("photographs")
    Path("photographs", "1.jpg").write_text("")
    options = ("train", "--task", "task", "--data", "mnist", "--backbone", SMALL_NETWORK, "--image-size", 32)
    assert "holds 1.jpg and is no bundle" in fails(*options, "--bundle", "photographs")
    assert "is an artifact, and tasks are learned into bundles" in fails(*options, "--bundle", copied_artifact)
    assert "is an artifact, and tasks are learned into bundles" in fails(*options, "--bundle", copied_artifact / "new")
    assert "lies in the bundle" in fails(*options, "--bundle", copied_bundle / "tasks")
    assert "Cannot write /proc/bundle" in fails(*options, "--bundle", "/proc/bundle")
    shutil.rmtree(Path("bundle", "samples"))
    Path("bundle", "samples").write_text("a file")
    assert "bundle/samples is in the way" in fails(*options, "--bundle", "bundle")
    Path("bundle", "samples").unlink()
    Path("bundle", "samples").symlink_to(Path("photographs").absolute())
    assert "by its name or a link" in fails(*options, "--bundle", "bundle")


def test_a_page_that_cannot_be_written_is_told_before_measuring(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    monkeypatch.setattr("ksm_hw.report.measure.measure_artifact", lambda *_, **__: pytest.fail("it was measured"))
    os.mkdir("folder")
    for path, message in (("/proc/report.html", "No such file"), ("folder", "It is a folder")):
        assert f"Cannot write {path}: {message}" in fails("report", artifact, "--html", path)
    assert "No artifact at nowhere" in fails("report", artifact, "nowhere"), "before the first is measured"


def test_an_artifact_that_is_missing_is_told_before_the_others_are_verified(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    monkeypatch.setattr("ksm_hw.report.verify.verify", lambda *_, **__: pytest.fail("it was verified"))
    assert "No artifact at nowhere" in fails("verify", artifact, "nowhere")


def test_results_are_printed_where_their_page_fails(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksm_hw.report.measure.measure_artifact", lambda *_, **__: "measured")
    monkeypatch.setattr("ksm_hw.report.measure.reports_as_json", lambda reports: reports)
    monkeypatch.setattr("ksm_hw.report.page._section", str)
    for part in ("precision_tables", "precision_figures"):
        monkeypatch.setattr(f"ksm_hw.report.page.{part}", lambda reports: [])
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "report", str(artifact), "--json", "--html", "/dev/full"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    output = capsys.readouterr()
    assert exit_.value.code == 2 and "Cannot write /dev/full: No space left on device" in output.err
    assert json.loads(output.out) == ["measured"]


def test_what_a_user_keeps_in_a_bundle_stays(tmp_path: Path, bundle: Bundle) -> None:
    """Beside the tasks and among the samples, where training replaces its own."""
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "00-cat.png").write_text("ours")
    folder = tmp_path / "bundle"
    add_task(folder, tiny_pack("task"), TENSORS, samples)
    kept = ["README.md", "photographs/1.jpg", "samples/task/mine.png", "samples/other/00-cat.png"]
    for name in kept:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (samples / "00-cat.png").rename(samples / "01-dog.png")
    add_task(folder, tiny_pack("task", accuracy=0.75), TENSORS, samples)
    assert [(folder / name).read_text() for name in kept] == ["mine"] * len(kept)
    assert sorted(os.listdir(folder / "samples" / "task")) == ["01-dog.png", "mine.png"]
    assert load_bundle(folder).packs["task"].facts["accuracy"] == 0.75


def test_what_is_written_takes_no_file_of_a_bundle_or_an_artifact(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, copied_bundle: Path, copied_artifact: Path
) -> None:
    """Also of one that the command does not read, through a link, from inside, and a pack that is looked into."""
    monkeypatch.setattr("ksm_hw.masks.bundle.load_bundle", lambda _: pytest.fail("it was read first"))
    pack = copied_bundle / "tasks" / "kernel-task.safetensors"
    alone = shutil.copy(pack, "alone.safetensors")
    Path("link.pt").symlink_to(pack)
    Path("below").symlink_to(copied_bundle / "tasks")
    export = ("export", copied_bundle, "--task", "kernel-task", "--format", "state-dict", "-o")
    places = (pack, copied_bundle / "bundle.json", copied_bundle / "new" / "a.pt", "link.pt", "below/kernel.pt")
    for output in places:
        message = fails(*export, output)
        assert "would lie in the bundle" in message and "Give another --output" in message
        message = fails("inspect", copied_bundle, "--html", output)
        assert "would lie in the bundle" in message and "Give another --html" in message
        assert "would lie in the bundle" in fails("report", copied_artifact, "--html", output)
    for output in (copied_artifact / "model.so", copied_artifact / "tasks" / "new.pt"):
        assert "would lie in the artifact" in fails(*export, output)
        assert "would lie in the artifact" in fails("inspect", copied_bundle, "--html", output)
    assert "would replace alone.safetensors, which is read" in fails("inspect", alone, "--html", alone)
    monkeypatch.chdir(copied_bundle / "tasks")
    assert "would lie in the bundle" in fails(*export, "kernel-task.safetensors")


def test_a_page_in_the_artifact_that_it_is_about(fails: Fails, copied_artifact: Path) -> None:
    before = (copied_artifact / "model.so").read_bytes()
    assert "would lie in the artifact" in fails("report", copied_artifact, "--html", copied_artifact / "model.so")
    assert (copied_artifact / "model.so").read_bytes() == before
