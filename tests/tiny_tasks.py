"""A bundle and an artifact of a few bytes, for tests of how they are written."""

from pathlib import Path

import numpy as np

from ksm_hw.artifact.manifest import Manifest, TaskEntry
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack

TENSORS = {"conv.weight": np.ones((1, 1, 1, 1), np.float32)}


def tiny_pack(task: str, accuracy: float = 0.5) -> TaskPack:
    """A task without masks over `TENSORS`; packs of other accuracies differ in their heads as well."""
    return TaskPack(
        task=task,
        classes=("cat", "dog"),
        method="head",
        granularity="kernel",
        backbone="tiny",
        backbone_sha256=sha256_of_tensors(TENSORS),
        preprocessing=Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        masks={},
        batch_norms={},
        head_weight=np.full((2, 1), accuracy, np.float32),
        head_bias=np.zeros(2, np.float32),
        facts={"accuracy": accuracy},
    )


def tiny_bundle(*tasks: str, samples: Path | None = None) -> Bundle:
    packs = {task: tiny_pack(task) for task in tasks}
    return Bundle("tiny", sha256_of_tensors(TENSORS), TENSORS, packs, samples)


def tiny_manifest(bundle: Bundle, workspace_bytes: int = 1) -> Manifest:
    """The manifest of an artifact whose only library is `model.so`."""
    return Manifest(
        backbone=bundle.backbone,
        backbone_sha256=bundle.backbone_sha256,
        target="host",
        tvm_target={"kind": "llvm"},
        device="cpu",
        cpu_features=(),
        cores=(),
        fold="switch",
        precision="float32",
        ir="relax",
        tvm_version="0",
        input_shape=(1, 3, 32, 32),
        output_shape=(1, 2),
        workspace_bytes=workspace_bytes,
        operators={},
        tasks={task: TaskEntry("main", None, ()) for task in bundle.packs},
        tuning_sha256=None,
    )
