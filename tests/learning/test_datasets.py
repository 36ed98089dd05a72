"""Every registered set that is installed, without leakage; folders; and what bad input answers."""

import dataclasses
import functools
import gzip
import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ksm_hw.errors import UserError
from ksm_hw.learning import dataset_sources, datasets
from ksm_hw.learning.dataset_sources import ImagesInMemory
from ksm_hw.learning.datasets import (
    FolderSplit,
    ImageSplit,
    TaskData,
    dataset_names,
    describe_datasets,
    held_out,
    load_task_data,
)

# (training images, test images, height and width)
EXPECTED = {
    "fashion-mnist": (2000, 600, 28),
    "clipart": (1950, 600, 128),
    "emoji": (2000, 600, 64),
    "glyphs": (2000, 600, 48),
    "mnist": (2000, 600, 28),
}
Loaded = tuple[TaskData, dict[bytes, set[str]]]


@functools.cache
def load_with_groups(name: str) -> Loaded:
    """A set, and the groups (drawing, emoji, font package) that each of its images came in, by hash of its pixels."""
    groups: dict[bytes, set[str]] = defaultdict(set)
    split_by_group = dataset_sources._split_by_group

    def recording(pixels, labels, names, most):  # type: ignore[no-untyped-def]
        for image, group in zip(pixels, names, strict=True):
            groups[hashlib.sha256(image.tobytes()).digest()].add(group)
        return split_by_group(pixels, labels, names, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_sources, "_split_by_group", recording)
        return load_task_data(name), groups


# Decoding all of the clip art takes as long as everything else here together.
@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name == "clipart" else ()) for name in sorted(EXPECTED)]
)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    skip_if_missing(request.param)
    return load_with_groups(request.param)


def skip_if_missing(name: str) -> None:
    if not dataset_sources.is_installed(name, datasets.datasets_folder()):
        pytest.skip(f"'{name}' is not installed; install it with: {datasets.install_command(name)}")


def pixel_hashes(split: ImageSplit) -> list[bytes]:
    return [hashlib.sha256(split[index][0].tobytes()).digest() for index in range(len(split))]


def test_every_set_is_described_and_expected() -> None:
    described = describe_datasets()
    assert [entry.name for entry in described] == dataset_names()
    assert set(dataset_names()) == set(EXPECTED)
    assert all(entry.install_command and entry.licence and entry.title for entry in described)


def test_classes_sizes_and_shapes(loaded: Loaded) -> None:
    data, _ = loaded
    train, test, side = EXPECTED[data.name]
    described = {entry.name: entry for entry in describe_datasets()}[data.name]
    assert (len(data.train), len(data.test)) == (train, test)
    assert len(data.classes) == len(set(data.classes)) == described.class_count
    assert described.installed
    for split in (data.train, data.test):
        assert set(split.labels) == set(range(len(data.classes)))
        image, label = split[0]
        assert (image.mode, image.size, label) == ("RGB", (side, side), split.labels[0])


def test_no_test_image_was_learned(loaded: Loaded) -> None:
    data, groups = loaded
    train, test = pixel_hashes(data.train), pixel_hashes(data.test)
    assert not set(train) & set(test)
    groups_of_train = set().union(*(groups[image] for image in train if image in groups))
    groups_of_test = set().union(*(groups[image] for image in test if image in groups))
    assert not groups_of_train & groups_of_test
    if data.name in ("clipart", "emoji", "glyphs"):
        assert groups_of_train and groups_of_test


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_digits_and_clothes_are_balanced(name: str) -> None:
    skip_if_missing(name)
    data = load_with_groups(name)[0]
    assert np.bincount(data.train.labels).tolist() == [200] * 10
    assert np.bincount(data.test.labels).tolist() == [60] * 10


@pytest.mark.parametrize("name", ["fashion-mnist"])
def test_a_set_is_the_same_each_time(name: str) -> None:
    skip_if_missing(name)
    first, again = load_with_groups(name)[0], load_task_data(name)
    for split, other in ((first.train, again.train), (first.test, again.test)):
        assert list(split.labels) == list(other.labels)
        assert pixel_hashes(split) == pixel_hashes(other)


def test_splitting_joins_groups_that_share_pixels_and_is_deterministic() -> None:
    generator = np.random.default_rng(1)
    pixels = [generator.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(40)]
    pixels[7] = pixels[31].copy()
    groups = [f"group {index // 2}" for index in range(40)]
    labels = list(range(40))
    train, test = dataset_sources._split_by_group(pixels, labels, groups, dataset_sources.FEW)
    sides = {label: side for side, split in (("train", train), ("test", test)) for label in split.labels}
    assert sorted(sides) == labels and set(sides.values()) == {"train", "test"}
    assert len({sides[index] for index in (6, 7, 30, 31)}) == 1
    assert all(sides[index] == sides[index + 1] for index in range(0, 40, 2))
    assert dataset_sources._split_by_group(pixels, labels, groups, dataset_sources.FEW)[1].labels == test.labels


def test_name_replaces_the_set_s_own() -> None:
    skip_if_missing("fashion-mnist")
    assert load_task_data("fashion-mnist", name="clothes").name == "clothes"


def test_held_out_images_are_of_all_classes_and_leave_one_of_each() -> None:
    labels = [0] * 40 + [1] * 20 + [2] * 2 + [3] * 2 + [4]
    images = [np.full((1, 1, 3), number, np.uint8) for number in range(len(labels))]
    data = TaskData("made", tuple("01234"), ImagesInMemory(images, labels), ImagesInMemory([], []), False, "", "")
    for share, expected in ((0.1, {0: 4, 1: 2}), (0.5, {0: 20, 1: 10, 2: 1, 3: 1}), (0.9, {0: 37, 1: 19, 2: 1, 3: 1})):
        learned, held = held_out(data, share)
        assert held is not None and Counter(held.labels) == expected
        assert {0, 1, 2, 3, 4} == set(learned.train.labels) and len(learned.train) + len(held) == len(labels)
    alone = dataclasses.replace(data, train=ImagesInMemory(images[:2], [0, 1]))
    with pytest.raises(UserError, match="none can be held out"):
        held_out(alone, 0.5)


def write_folder(folder: Path, train: tuple[str, ...] = ("cat", "dog"), test: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split, classes in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            target = folder / split / name
            target.mkdir(parents=True)
            Image.new("RGBA", (20, 30), (number, 0, 0, 255)).save(target / "a.png")
    return folder


def test_folder(tmp_path: Path) -> None:
    data = load_task_data(str(write_folder(tmp_path / "my pets")))
    assert (data.name, data.classes, list(data.test.labels)) == ("my-pets", ("cat", "dog"), [0, 1])
    image, label = data.train[1]
    assert (image.mode, image.size, label) == ("RGB", (20, 30), 1)
    assert load_task_data(str(tmp_path / "my pets"), name="pets").name == "pets"


def test_unknown_name_lists_the_near_one_and_all() -> None:
    with pytest.raises(UserError, match="Did you mean 'fashion-mnist'") as error:
        load_task_data("fashion-mnits")
    assert all(name in str(error.value) for name in dataset_names())


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_without_a_split(tmp_path: Path, split: str) -> None:
    folder = write_folder(tmp_path)
    (folder / split).rename(folder / "other")
    with pytest.raises(UserError, match=f"has no folder '{split}'"):
        load_task_data(str(folder))


def test_class_missing_from_one_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, test=("cat",))
    with pytest.raises(UserError, match=r"'dog' is in train/ but not in test/"):
        load_task_data(str(folder))


def test_empty_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "test" / "dog" / "a.png").unlink()
    with pytest.raises(UserError, match="dog"):
        load_task_data(str(folder))


def test_several_empty_classes_are_named_at_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for name in "cat", "dog":
        (folder / "train" / name / "a.png").rename(folder / "train" / name / "a.txt")
    with pytest.raises(UserError, match=r"train: no images in cat, dog\. Add images that end in \.bmp"):
        load_task_data(str(folder))


def test_what_is_an_image_and_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hidden folders and those of file managers are no classes, GIFs and images further below are images."""
    folder = write_folder(tmp_path)
    image = folder / "train" / "cat" / "a.png"
    for name in "cat/B.GIF", "cat/inner/c.png", "cat/._a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png", "beside.png":
        (folder / "train" / name).parent.mkdir(exist_ok=True)
        (folder / "train" / name).write_bytes(image.read_bytes())
    (folder / "train" / "linked").symlink_to(folder / "train" / "dog")
    (folder / "test" / "linked").symlink_to(folder / "test" / "dog")
    data = load_task_data(str(folder))
    assert data.classes == ("cat", "dog", "linked")
    train = data.train
    assert isinstance(train, FolderSplit)
    assert [path.name for path in train.files] == ["B.GIF", "a.png", "c.png", "a.png", "a.png"]
    assert list(train.labels) == [0, 0, 0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}/train: passed over: 1 folders of file managers, 2 hidden, 1 images in no class folder"
    ]


def test_a_class_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "train" / "dog").rename(os.fsdecode(os.fsencode(folder / "train") + b"/caf\xe9"))
    with pytest.raises(UserError, match=r"class folder 'caf\\udce9' is no UTF-8"):
        load_task_data(str(folder))


def test_image_that_does_not_decode_is_named_on_access(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    damaged = folder / "train" / "dog" / "a.png"
    damaged.write_bytes(b"no image")
    data = load_task_data(str(folder))
    data.train[0]
    with pytest.raises(UserError, match=r"dog.a\.png"):
        data.train[1]


def test_missing_set_says_where_it_looked_and_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSM_HW_DATA", str(tmp_path))
    with pytest.raises(UserError, match="emoji-datasource-google") as error:
        load_task_data("emoji")
    assert f"npm install --prefix {tmp_path}" in str(error.value)
    assert not {entry.name: entry for entry in describe_datasets()}["emoji"].installed


@pytest.mark.parametrize(
    ("name", "place", "command"),
    [
        ("fashion-mnist", "_FASHION_MNIST", "apt-get install dataset-fashion-mnist"),
        ("clipart", "_CLIPART", "apt-get install openclipart-png"),
        ("glyphs", "_DEBIAN_LISTINGS", "apt-get install fonts-"),
    ],
)
def test_missing_debian_set(
    name: str, place: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_sources, place, tmp_path / "nowhere")
    with pytest.raises(UserError, match=command):
        load_task_data(name)
    assert not dataset_sources.is_installed(name, tmp_path)


def test_missing_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ksm-hw\[datasets\]'"):
        load_task_data("mnist")


def write_idx(folder: Path, count: int = 10, labels: int = 10) -> None:
    for prefix in ("train", "t10k"):
        pixels = np.zeros((count, 28, 28), np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(range(labels))))


@pytest.mark.parametrize("damage", ["truncated", "changed", "labels"])
def test_damaged_debian_file_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_sources, "_FASHION_MNIST", tmp_path)
    write_idx(tmp_path, labels=9 if damage == "labels" else 10)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[10:20] = b"\xff" * 10  # Inside the compressed stream: zlib's own error.
        file.write_bytes(content)
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        load_task_data("fashion-mnist")


def test_damaged_drawing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_sources, "_CLIPART", tmp_path)
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cat_01.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cat_01\.png"):
        load_task_data("clipart")


def test_all_images_are_the_few_and_more() -> None:
    skip_if_missing("glyphs")
    few, whole = load_with_groups("glyphs")[0], load_task_data("glyphs", whole=True)
    for part, every in ((few.train, whole.train), (few.test, whole.test)):
        assert len(every) > len(part) and pixel_hashes(every)[: len(part)] == pixel_hashes(part)
    learned, tested = (set(pixel_hashes(split)) for split in (whole.train, whole.test))
    assert not learned & tested
