"""What in a folder is an image: the same for `run`, `verify` and `train`."""

import os
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.images.decoding import read_image
from ksm_hw.images.finding import find_images, image_files, images_of_folder, subfolders

NO_IMAGES = (
    ".hidden.jpg", "._photo.jpg", ".DS_Store", "Thumbs.db", "notes.txt", ".ipynb_checkpoints/photo-checkpoint.jpg",
    "@eaDir/photo.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._photo.jpg", ".thumbnails/photo.png",
    "below/$RECYCLE.BIN/a.png",
)  # fmt: skip
IMAGES = ("PHOTO.JPG", "a.gif", "b.jpeg", "below/c.webp", "below/deep.png/d.png", "e.tiff", "f.Png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*IMAGES, *NO_IMAGES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_are_found_and_all_else_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [str(path.relative_to(folder)) for path in images_of_folder(folder)]
    assert found == ["PHOTO.JPG", "a.gif", "b.jpeg", "e.tiff", "f.Png", "below/c.webp", "below/deep.png/d.png"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"{folder}: passed over: 3 folders of file managers, 5 hidden, 2 no image files"


def test_nothing_is_said_where_nothing_is_passed_over(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(images_of_folder(photographs)) == 3 and not caplog.records


def test_a_file_that_is_named_is_an_image_whatever_its_name(folder: Path) -> None:
    named = [folder / ".hidden.jpg", folder / "notes.txt", folder / "missing.jpg"]
    assert image_files([*named, folder / "below"]) == [*named, folder / "below/c.webp", folder / "below/deep.png/d.png"]
    assert image_files([folder / ".thumbnails"]) == [folder / ".thumbnails/photo.png"]


def test_no_images(folder: Path) -> None:
    with pytest.raises(UserError, match=r"No images in .*__MACOSX. Expected files that end in .bmp, "):
        images_of_folder(folder / "__MACOSX")


def test_links(tmp_path: Path) -> None:
    """To a file, to a folder, into a circle, to two folders that lead to each other, to nothing."""
    photos, others = tmp_path / "photos", tmp_path / "others"
    photos.mkdir()
    others.mkdir()
    (others / "a.png").touch()
    (photos / "a.png").symlink_to(others / "a.png")
    (photos / "again").symlink_to(photos)
    (photos / "others").symlink_to(others)
    (photos / "twice").symlink_to(others)
    (others / "back").symlink_to(photos)
    (photos / "lost.png").symlink_to(tmp_path / "nowhere")
    (photos / "itself").symlink_to(photos / "itself")
    found = find_images(photos)
    assert [str(path.relative_to(photos)) for path in found.images] == [
        *("a.png", "lost.png", "others/a.png", "twice/a.png")
    ]
    assert subfolders(photos) == ["again", "others", "twice"]


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert find_images(tmp_path).passed_over == {"no image files": 1}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.JPG"))
    path.touch()
    assert images_of_folder(tmp_path) == [path]


def test_a_name_that_is_too_long_is_no_folder() -> None:
    path = Path("x" * 300 + ".jpg")
    assert image_files([path]) == [path]
    with pytest.raises(UserError, match=r"Cannot read .*File name too long"):
        read_image(path)


def test_folders_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Cannot list .*nowhere: No such file or directory"):
        find_images(tmp_path / "nowhere")
