"""Artifacts over rounded backbones, made of others: a library is the same whatever its backbone lies in at rest."""

import dataclasses
import shutil
from pathlib import Path

from ksm_hw.artifact.manifest import LIBRARY, read_manifest
from ksm_hw.artifact.output import write_artifact
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import load_bundle, rounded_bundle


def rounded_artifact(artifact: Path, precision: BackbonePrecision, folder: Path) -> Path:
    """Writes an artifact of `--fold switch` or `fused` as `compile --backbone-precision` would have."""
    manifest = dataclasses.replace(read_manifest(artifact), backbone_precision=precision)
    bundle = rounded_bundle(load_bundle(artifact), precision)
    write_artifact(folder, manifest, lambda made: shutil.copy(artifact / LIBRARY, made) and None, bundle)
    return folder
