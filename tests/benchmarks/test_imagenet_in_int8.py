"""EfficientNet-Lite0 as the ImageNet network that its package carries: in int8 photographs keep their class."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.mask_format import mask_shape
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import pack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import (
    backbone_tensors,
    batch_norm_names,
    default_preprocessing,
    head_path,
    maskable_layers,
    packaged_weights,
    pretrained_backbone,
)
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.observers import DEFAULT_CORRECTION, DEFAULT_OBSERVER
from ksm_hw.runtime.session import Session
from ksm_hw.state_dicts import read_state_dict
from ksm_hw.toolchains.targets import load_target

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from peers.engines.photographs import CALIBRATED_ON, JUDGED_ON, crops, photograph

NETWORK = "efficientnet-lite0"
PHOTOGRAPHS = (*CALIBRATED_ON, *JUDGED_ON)


@pytest.mark.slow  # Biases are corrected by 100 images of 224 pixels: a minute.
def test_photographs_keep_their_class(tmp_path: Path) -> None:
    bundle = imagenet_bundle()
    (pack,) = bundle.packs.values()
    batches = np.split(crops(PHOTOGRAPHS, pack.preprocessing), 4)
    found = calibrate(bundle, pack, batches, DEFAULT_OBSERVER, correction=DEFAULT_CORRECTION)
    calibrated = dataclasses.replace(bundle, packs={pack.task: dataclasses.replace(pack, calibration=found)})
    (artifact,) = compile_bundle(calibrated, load_target("host"), tmp_path / "artifact", precision="int8")
    session = Session.load(artifact)
    session.switch(pack.task)
    images = preprocess_batch([photograph(name) for name in PHOTOGRAPHS], pack.preprocessing)
    with torch.inference_mode():
        expected = task_module(bundle, pack)(torch.from_numpy(images)).argmax(1).tolist()
    assert expected[PHOTOGRAPHS.index("chelsea")] == 285  # An Egyptian cat: weights, head and image belong together.
    assert session.run_all(images).argmax(axis=1).tolist() == expected


def imagenet_bundle() -> Bundle:
    """The network with the head that it was published with, as a task whose masks keep every weight."""
    model = pretrained_backbone(NETWORK)
    tensors = {name: array.copy() for name, array in backbone_tensors(model).items()}
    state, head = model.state_dict(), head_path(model)
    published = read_state_dict(packaged_weights(NETWORK))
    weight = published[f"{head}.weight"].numpy()
    sha256 = sha256_of_tensors(tensors)
    layers = maskable_layers(model)
    pack = TaskPack(
        task="imagenet",
        classes=tuple(f"class {number}" for number in range(len(weight))),
        method="none",
        granularity="kernel",
        backbone=NETWORK,
        backbone_sha256=sha256,
        preprocessing=default_preprocessing(NETWORK, 224),
        masks={layer: pack_mask(np.ones(mask_shape(shape, "kernel"), np.float32)) for layer, shape in layers.items()},
        batch_norms={name: state[name].numpy().copy() for name in batch_norm_names(model)},
        head_weight=weight.copy(),
        head_bias=published[f"{head}.bias"].numpy().copy(),
    )
    return Bundle(NETWORK, sha256, tensors, {pack.task: pack})
