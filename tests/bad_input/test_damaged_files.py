"""Damaged files by the thousand: each is read or refused with a message; none ends in another error or takes memory.

With `--slow` 10,000 of each kind, otherwise some hundreds.
"""

import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import damaged_bytes, damaged_json, damaged_safetensors, damaged_toml, read_damaged, unsealed
from PIL import Image

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.preprocessing import preprocess
from ksm_hw.masks.safetensors_file import read_arrays, write_arrays
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.masks.task_pack import is_same_task, load_task_pack
from ksm_hw.resources import targets_folder
from ksm_hw.state_dicts import read_state_dict
from ksm_hw.toolchains.targets import load_target


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> int:
    """Of damaged files of a kind."""
    return 10_000 if request.config.getoption("--slow") else 300


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind: str, photographs: Path, bundle: Any, tmp_path: Path, count: int) -> None:
    with Image.open(photographs / "cat.png") as image:
        content = encoded(image.resize((40, 30)), kind)
    file = tmp_path / f"photo.{kind.lower()}"
    file.write_bytes(content)
    preprocessing = bundle.packs["kernel-task"].preprocessing

    def read() -> None:
        assert np.isfinite(preprocess(read_image(file), preprocessing)).all()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata that is damaged.
        read_damaged(file, damaged_bytes, read, range(count // len(KINDS)))


def test_packs(copied_bundle: Path, count: int) -> None:
    file = copied_bundle / "tasks" / "kernel-task.safetensors"
    photograph = Image.new("RGB", (40, 30), "teal")

    def read() -> None:
        pack = load_task_pack(file)
        preprocess(photograph, pack.preprocessing)
        for mask in pack.masks.values():
            unpack_mask(mask)

    read_damaged(file, damaged_safetensors, read, range(count))


@pytest.mark.parametrize("name", ["bundle.json", "tasks/kernel-task.safetensors"])
def test_bundles(copied_bundle: Path, count: int, name: str) -> None:
    damage = damaged_json if name.endswith(".json") else damaged_safetensors
    read_damaged(copied_bundle / name, damage, lambda: void(load_bundle(copied_bundle)), range(count // 2))


def test_manifests(artifact: Path, tmp_path: Path, count: int) -> None:
    """The files that it lists are links to whole ones."""
    folder = shutil.copytree(
        artifact, tmp_path / "artifact", copy_function=lambda *names: Path(names[1]).symlink_to(names[0])
    )
    (folder / "manifest.json").unlink()
    shutil.copy(artifact / "manifest.json", folder / "manifest.json")
    read_damaged(folder / "manifest.json", damaged_json, lambda: void(read_manifest(folder)), range(count))


def single_flips(content: bytes, places: range) -> Iterator[bytes]:
    """The content with one bit flipped, in a hundred places."""
    for seed in range(100):
        generator = np.random.default_rng(seed)
        changed = bytearray(content)
        changed[int(generator.integers(places.start, places.stop))] ^= 1 << int(generator.integers(8))
        yield bytes(changed)


def test_one_bit_in_a_pack_is_seen(copied_bundle: Path) -> None:
    """Of a mask or a BatchNorm every value is a possible one, and `verify` would compare wrong with wrong."""
    file = copied_bundle / "tasks" / "kernel-task.safetensors"
    content = file.read_bytes()
    for changed in single_flips(content, range(8 + int.from_bytes(content[:8], "little"), len(content))):
        file.write_bytes(changed)
        with pytest.raises(UserError, match="damaged"):
            load_task_pack(file)


def test_one_bit_in_a_manifest_is_seen(copied_artifact: Path) -> None:
    """A parameter whose name became another's of the same shape would give wrong logits."""
    file = copied_artifact / "manifest.json"
    content = file.read_bytes()
    for changed in single_flips(content, range(content.rindex(b'"sha256"'))):
        file.write_bytes(changed)
        with pytest.raises(UserError):
            read_manifest(copied_artifact)


def test_what_an_older_ksm_hw_wrote_is_read_without_hashes_of_itself(copied_artifact: Path) -> None:
    manifest, pack = copied_artifact / "manifest.json", copied_artifact / "tasks" / "kernel-task.safetensors"
    before = read_manifest(copied_artifact), load_task_pack(pack)
    arrays, metadata = read_arrays(pack)
    write_arrays(pack, arrays, {"ksm-hw": json.dumps(unsealed(metadata["ksm-hw"]))})
    content = unsealed(manifest.read_bytes())
    content["files"]["tasks/kernel-task.safetensors"] = {"bytes": pack.stat().st_size, "sha256": sha256_of_file(pack)}
    manifest.write_text(json.dumps(content))
    assert read_manifest(copied_artifact) == before[0]
    assert is_same_task(load_task_pack(pack), before[1])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights(suffix: str, tmp_path: Path, count: int) -> None:
    state = {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
    file = tmp_path / f"weights.{suffix}"
    torch.save(state, file) if suffix == "pt" else safetensors.torch.save_file(state, file)
    read_damaged(file, damaged_bytes, lambda: void(read_state_dict(file)), range(count // 2))


def test_targets(tmp_path: Path, count: int) -> None:
    file = Path(shutil.copy(targets_folder() / "rk3588.toml", tmp_path))
    read_damaged(file, damaged_toml, lambda: void(load_target("mine", file=file)), range(count))


def void(_: object) -> None:
    """For a reader whose result is not looked at."""
