"""What a task loses where its backbone lies at rest in fewer bits: the rounding that its artifact itself cannot see.

An artifact has the rounded weights alone. What they were is in the bundle that it was compiled from, or in a package.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ksm_hw.compiler.zero_channels import narrowed_as
from ksm_hw.errors import UserError
from ksm_hw.images.stream import OnFailure, raise_failure
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.state_dicts import packaged_tensors

_BATCH = 8  # Images at once; PyTorch holds what lies between the layers of all of them.


@dataclass(frozen=True)
class Rounding:
    """PyTorch's logits over the rounded backbone, beside those over float32's.

    Attributes:
        backbone_precision: what the weights are rounded to.
        absolute_error: largest difference of a logit.
        relative_error: that, by the largest logit of the same image; the worst image.
        agreement: share in 0…1 of the images with the same top class.
    """

    backbone_precision: BackbonePrecision
    absolute_error: float
    relative_error: float
    agreement: float


def exact_bundle(bundle: Bundle, given: Path | None) -> Bundle | None:
    """An artifact's bundle over its backbone as it was before it was rounded.

    Args:
        bundle: of an artifact.
        given: folder of the bundle that it was compiled from.

    Returns:
        None where the backbone is not rounded, or nobody gave its weights and no package has them.

    Raises:
        UserError: the bundle that is given is over another backbone, or over one that is rounded as well, or its tasks
            are others, for which other channels are left out (`zero_channels`).
    """
    if bundle.backbone_precision == "float32":
        return None
    if given is None:
        tensors = packaged_tensors(bundle.backbone)
        if tensors is None or sha256_of_tensors(tensors) != bundle.backbone_sha256:
            return None
    else:
        found = narrowed_as(bundle, load_bundle(given))
        if found.backbone_sha256 != bundle.backbone_sha256 or found.backbone_precision != "float32":
            raise UserError(
                f"{given} is over {found.backbone} in {found.backbone_precision} with SHA-256 {found.backbone_sha256}; "
                f"{bundle.folder} was compiled over {bundle.backbone} in float32 with {bundle.backbone_sha256}. Give "
                "the bundle that it was compiled from, as it was then."
            )
        tensors = dict(found.tensors)
    return dataclasses.replace(bundle, tensors=tensors, backbone_precision="float32")


@torch.inference_mode()
def rounding_of(
    bundle: Bundle, exact: Bundle, pack: TaskPack, files: Sequence[Path], on_failure: OnFailure = raise_failure
) -> Rounding:
    """What rounding changes of a task's logits.

    Args:
        bundle: of the artifact, over the rounded backbone.
        exact: over that in float32 (`exact_bundle`).
        pack: the task.
        files: images.
        on_failure: called with an image that cannot be read, which is left out.

    Raises:
        UserError: no image can be read.
    """
    networks = [task_module(one, pack) for one in (bundle, exact)]
    logits = [
        [network(torch.from_numpy(batch)).numpy() for network in networks]
        for _, batch in read_batches(files, pack.preprocessing, _BATCH, on_failure)
    ]
    if not logits:
        raise UserError(f"Of {len(files)} images none can be read. Give others with --images.")
    rounded, known = (np.concatenate(of_network) for of_network in zip(*logits, strict=True))
    error = np.abs(rounded - known).max(1)
    largest = np.maximum(np.abs(known).max(1), np.finfo(np.float32).tiny)
    same = rounded.argmax(1) == known.argmax(1)
    return Rounding(bundle.backbone_precision, float(error.max()), float((error / largest).max()), float(same.mean()))
