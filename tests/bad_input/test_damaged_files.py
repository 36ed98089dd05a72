"""Damaged files by the thousand: each is read or refused with a message; none ends in another error or takes memory.

With `--slow` 10,000 of each kind, otherwise some hundreds.
"""

import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import damaged_bytes, damaged_json, damaged_safetensors, damaged_toml, read_damaged
from PIL import Image

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.preprocessing import preprocess
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.masks.task_pack import load_task_pack
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
