"""Descriptions of artifacts and bundles that disagree about what the backbone lies in at rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from damage import unsealed
from rounded_artifacts import rounded_artifact

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import load_bundle


@pytest.fixture(scope="module")
def rounded(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded_artifact(artifact, "int8", tmp_path_factory.mktemp("rounded") / "int8")


GONE = "gone"


def changed(file: Path, **entries: Any) -> str:
    """Changes entries of a JSON file, or takes those out that are `GONE`; returns the text that was there.

    The file is left without a hash of itself.
    """
    text = file.read_text()
    content = {**unsealed(text), **entries}
    file.write_text(json.dumps({name: value for name, value in content.items() if value != GONE}))
    return text


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"backbone_precision": "float32"}, "has a backbone in float32, and .*bundle.json one in int8"),
        ({"backbone_precision": "float16"}, "has a backbone in float16, and .*bundle.json one in int8"),
        ({"backbone_precision": GONE}, "has a backbone in float32, and .*bundle.json one in int8"),
        ({"format_version": 5}, "format version 5 knows no backbone in int8"),
    ],
)
def test_a_manifest_of_another_backbone(entries: dict[str, Any], said: str, rounded: Path) -> None:
    manifest = rounded / "manifest.json"
    text = changed(manifest, **entries)
    try:
        with pytest.raises(UserError, match=said):
            read_manifest(rounded)
    finally:
        manifest.write_text(text)


@pytest.mark.parametrize("version", [6, 7])
def test_int8_from_before_its_functions_took_codes(version: int, rounded: Path) -> None:
    manifest = rounded / "manifest.json"
    text = changed(manifest, precision="int8", format_version=version)
    try:
        with pytest.raises(UserError, match=rf"format version {version}; .* of int8 8 alone. Compile the bundle again"):
            read_manifest(rounded)
    finally:
        manifest.write_text(text)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"format_version": 1}, "bundle.json is damaged .format version 1 with rounding"),
        ({"rounding": GONE}, "bundle.json is damaged .format version 2 without rounding"),
        ({"rounding": {"precision": "float32", "sha256": "0" * 64}}, "bundle.json is damaged .*'float32'"),
    ],
)
def test_a_description_of_another_version(entries: dict[str, Any], said: str, rounded: Path) -> None:
    description = rounded / "bundle.json"
    text = changed(description, **entries)
    try:
        with pytest.raises(UserError, match=said):
            load_bundle(rounded)
    finally:
        description.write_text(text)


def test_a_package_has_no_rounded_backbone(rounded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = rounded / "backbone.safetensors"
    monkeypatch.setattr("ksm_hw.masks.bundle.packaged_tensors", lambda name: load_bundle(rounded).tensors)
    kept = backbone.rename(rounded / "kept")
    try:
        with pytest.raises(UserError, match=r"backbone.safetensors is missing, and no package .* in int8"):
            load_bundle(rounded)
    finally:
        kept.rename(backbone)
