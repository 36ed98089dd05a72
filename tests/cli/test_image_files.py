"""`run`, `verify` and `train` over many files: results as they come, on past bad files, and from folders."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ksm_hw.cli import app, main
from ksm_hw.images import decoding
from ksm_hw.runtime.session import Session


@pytest.fixture
def photos(photographs: Path, tmp_path: Path) -> Path:
    """A folder of three photographs, two files that do not decode, and what file managers leave."""
    folder = tmp_path / "photos"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("astronaut", "cat", "coffee"):
        (folder / f"{name}.PNG").symlink_to(photographs / f"{name}.png")
    (folder / "b [copy].jpg").write_bytes(b"no image")
    (folder / "half.png").write_bytes((photographs / "cat.png").read_bytes()[:9000])
    for name in ("._cat.png", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints/cat.png"):
        (folder / name).touch()
    return folder


@pytest.fixture(autouse=True)
def pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets of Pillow is as before after it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_run_takes_a_folder_and_goes_on_past_bad_files(
    artifact: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run("run", artifact, photos, "missing*.jpg", "--task", "kernel-task")
    assert result.exit_code == 2
    assert result.stdout.count("(kernel-task)") == 3
    errors = result.stderr.replace("\n", " ").split("error: ")[1:]
    assert [error.split(" ")[0] for error in errors] == ["Cannot", "Cannot", "No"]
    assert "b [copy].jpg" in errors[0] and "half.png" in errors[1] and "The pattern matched no file" in errors[2]
    assert [record.getMessage() for record in caplog.records if record.name == "ksm_hw.images.finding"] == [
        f"{photos}: passed over: 3 hidden, 1 no image files"
    ]


def test_json_is_one_document_with_the_failures(artifact: Path, photos: Path) -> None:
    result = run("run", artifact, photos, "--task", "kernel-task", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert [Path(entry["image"]).name for entry in document["images"]] == ["astronaut.PNG", "cat.PNG", "coffee.PNG"]
    assert [Path(entry["image"]).name for entry in document["failures"]] == ["b [copy].jpg", "half.png"]
    assert all(entry["error"].startswith("Cannot decode") for entry in document["failures"])


def test_verify_goes_on_past_bad_files(artifact: Path, photos: Path) -> None:
    result = run("verify", artifact, "--images", photos, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2 and document["passed"]
    assert [entry["images"] for entry in document["results"]] == [3, 3, 3]
    assert [Path(entry["image"]).name for entry in document["failures"]] == ["b [copy].jpg", "half.png"]
    assert result.stderr.count("error:") == 2, "said once, not for each task"
    result = run("verify", artifact, "--images", photos, "--tolerance", 0, "--json")
    assert result.exit_code == 1, "a verification that failed is said before images that could not be read"


def test_verify_with_no_image_that_can_be_read(
    artifact: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "verify", str(artifact), "--images", str(photos / "half.png")])
    with pytest.raises(SystemExit) as exit_:
        main()
    output = capsys.readouterr()
    assert exit_.value.code == 2 and output.out == "" and "Of 1 images none can be read" in output.err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_keeps_what_is_done(
    as_json: bool, artifact: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all, calls = Session.run_all, []

    def stopped_at_the_third(session: Session, images: object) -> object:
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_all(session, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run_all", stopped_at_the_third)
    result = run("run", artifact, photographs, "--task", "kernel-task", *(["--json"] if as_json else []))
    assert result.exit_code == 130 and "Stopped." in result.stderr
    if as_json:
        assert len(json.loads(result.stdout)["images"]) == 2
    else:
        assert result.stdout.count("(kernel-task)") == 2


def test_results_come_before_all_images_are_read(
    artifact: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    read, run_all = decoding.read_image, Session.run_all
    monkeypatch.setattr("ksm_hw.masks.input_batches.read_image", lambda path: (events.append("read"), read(path))[1])
    monkeypatch.setattr(Session, "run_all", lambda self, images: (events.append("run"), run_all(self, images))[1])
    files = [photographs / "cat.png"] * 30
    assert run("run", artifact, *files, "--task", "kernel-task", "--json").exit_code == 0
    assert events.count("read") == events.count("run") == 30
    # Of four threads at most, two each and the one that is taken.
    assert events.index("run") <= 10


def test_max_pixels(artifact: Path, photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jpeg = tmp_path / "coffee.jpg"
    Image.open(photographs / "coffee.png").save(jpeg)
    arguments = ["run", artifact, jpeg, photographs / "coffee.png", "--task", "kernel-task", "--json"]
    assert run(*arguments).exit_code == 0 and not caplog.records
    result = run(*arguments, "--max-pixels", 100_000)
    assert result.exit_code == 2 and len(json.loads(result.stdout)["images"]) == 1
    assert "at most 100000 pixels (--max-pixels)" in result.stderr.replace("\n", " ")
    assert "600 × 400 pixels and is decoded at 1/2" in caplog.text


def test_a_name_that_is_no_utf8(artifact: Path, photographs: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 [1].png"))
    path.symlink_to(photographs / "cat.png")
    result = run("run", artifact, path, "--task", "kernel-task")
    assert result.exit_code == 0 and r"caf\xe9[1].png" in re.sub(r"\s", "", result.stdout)


# Training.


@pytest.fixture
def pets(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "pets"
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (folder / name).mkdir(parents=True)
        for shade in (0, 100):
            Image.new("RGB", (40, 40), (shade, shade, 0)).save(folder / name / f"{shade}.gif")
    yield folder


def train(pets: Path, *arguments: object) -> Result:
    command = ["train", "--task", "pets", "--data", pets, "--bundle", pets.parent / "bundle", "--method", "head"]
    return run(*command, "--image-size", 32, "--epochs", 1, *arguments)


def test_train_names_all_bad_files_before_it_learns(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "train/dog/0.gif").write_bytes(b"no image")
    (pets / "test/cat/100.gif").write_bytes((pets / "test/cat/0.gif").read_bytes()[:20])
    result = train(pets)
    said = result.stderr.replace("\n", " ")
    assert "train/dog/0.gif" in said and "test/cat/100.gif" in said and not (pets.parent / "bundle").exists()
    assert str(result.exception).startswith("2 of 8 images cannot be read")
    taken = {}
    monkeypatch.setattr(
        "ksm_hw.learning.train.train_task", lambda images, *rest, **options: taken.update(images=images) or stop()
    )
    result = train(pets, "--skip-bad")
    assert "2 of 8 images cannot be read and are left out." in result.stderr.replace("\n", " ")
    assert [path.name for path in taken["images"].train.files] == ["0.gif", "100.gif", "100.gif"]
    assert list(taken["images"].train.labels) == [0, 0, 1] and list(taken["images"].test.labels) == [0, 1, 1]


def stop() -> None:
    raise KeyboardInterrupt


def test_a_class_of_which_no_image_is_left(pets: Path) -> None:
    for path in (pets / "train/dog").iterdir():
        path.write_bytes(b"no image")
    result = train(pets, "--skip-bad")
    assert "No image of class 'dog'" in str(result.exception)
