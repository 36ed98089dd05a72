"""The networks: compiled where there is time for it, and completed on the machine that has the GPU.

    python -m cuda_peers.networks COMPILED FOLDER NETWORK BATCH

COMPILED has a folder for each state of ksm-hw, such as `before`, and in that one for each network and batch. Weights
are random and large (`peers.networks`), so what travels of an artifact is its manifest and its library. Where it runs
the bundle is made again, and with it the images of an inference and what PyTorch makes of them on the CPU.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from peers.networks import make_bundle

from ksm_hw.artifact.manifest import FORMAT_VERSIONS, LIBRARY, MANIFEST, Manifest
from ksm_hw.artifact.output import write_artifact
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.json_document import read_versioned_json
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.toolchains.targets import CompileTarget

CLASSES = 1000  # ImageNet's.
BUNDLE, IMAGES, LOGITS = "bundle", "images.npy", "logits.npy"


def compile_network(backbone: str, batches: list[int], target: CompileTarget, folder: Path) -> None:
    """Writes manifest and library of a network for each batch into FOLDER/BACKBONE-BATCH."""
    bundle = make_bundle(backbone, 1, CLASSES, pretrained=False)
    for batch in batches:
        whole, parts = folder / "whole", folder / f"{backbone}-{batch}"
        compile_bundle(bundle, target, whole, batch=batch)
        parts.mkdir()
        for name in (LIBRARY, MANIFEST):
            shutil.move(whole / name, parts / name)
        shutil.rmtree(whole)


def complete_network(compiled: Path, folder: Path, backbone: str, batch: int) -> None:
    """Makes FOLDER/STATE, artifacts, of what `compile_network` wrote, and bundle, images and logits beside them."""
    bundle = make_bundle(backbone, 1, CLASSES, pretrained=False)
    (folder / BUNDLE).mkdir(parents=True)
    save_bundle(bundle, folder / BUNDLE)
    (pack,) = bundle.packs.values()
    size = pack.preprocessing.image_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = task_module(bundle, pack)(images)
    np.save(folder / IMAGES, images.numpy())
    np.save(folder / LOGITS, logits.numpy())
    for state in compiled.iterdir():
        if (state / folder.name).exists():
            _complete_artifact(state / folder.name, folder / state.name, bundle)


def _complete_artifact(parts: Path, artifact: Path, bundle: Bundle) -> None:
    manifest = read_versioned_json((parts / MANIFEST).read_bytes(), Manifest, *FORMAT_VERSIONS.values())
    # What random numbers and a few training steps give differs between releases of PyTorch.
    manifest = dataclasses.replace(manifest, backbone_sha256=bundle.backbone_sha256)

    def export(into: Path) -> None:
        shutil.copy(parts / LIBRARY, into / LIBRARY)

    write_artifact(artifact, manifest, export, bundle)


if __name__ == "__main__":
    complete_network(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
