"""The weights that a task is learned from: its bundle's, or the pretrained ones where no other task is in the bundle.

Whatever the method is, a task is learned over the weights that the others are over. Where the task is the only one, and
changed the weights itself, these are no longer what learning begins from: it would begin with what pruning left. The
pretrained weights are then read again, and proven to be those by the hash that each pack keeps of them.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.methods.free_weights import free_share
from ksm_hw.learning.methods.table import METHODS
from ksm_hw.masks.bundle import DESCRIPTION, Bundle, load_bundle
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import backbone_tensors, bundled_backbone, maskable_layers, pretrained_backbone

PRETRAINED = "pretrained_sha256"  # In a pack's facts: hash of the weights that the bundle's first task began from.

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a task is learned from.

    Attributes:
        network: with the weights.
        older: the other tasks over them.
        pretrained_sha256: hash of the weights that the bundle's first task began from; None where nobody knows.
        free_share: share in 0…1 of the weights that no other task uses.
    """

    network: nn.Module
    older: list[TaskPack]
    pretrained_sha256: str | None
    free_share: float


def starting_weights(task: str, folder: Path, backbone: str, weights: Path | None, image_size: int) -> Start:
    """What a task is learned from into a bundle, or into none yet.

    Args:
        task: its name; a task of that name in the bundle will be replaced.
        folder: of the bundle.
        backbone, weights: see `pretrained_backbone`. Where the bundle has another task they are only compared.
        image_size: height and width of the input in pixels.

    Raises:
        UserError: the bundle is over another backbone or began from other weights, or is damaged; the weights are
            missing or do not fit; there is no such network, or it does not take images of this size.
    """
    bundle = load_bundle(folder) if (folder / DESCRIPTION).exists() else None
    if bundle is not None and bundle.backbone != backbone:
        raise UserError(
            f"The bundle {folder} is over {bundle.backbone} with SHA-256 {bundle.backbone_sha256}, and the task would "
            f"be learned over {backbone}. Give another bundle, or the bundle's backbone."
        )
    older = [] if bundle is None else [pack for pack in bundle.packs.values() if pack.task != task]
    began = None if bundle is None else _began_from(bundle)
    unchanged = bundle is not None and bundle.backbone_sha256 == began
    if bundle is None or weights is not None or not (older or unchanged):
        network = pretrained_backbone(backbone, weights, image_size)
        found = sha256_of_tensors(backbone_tensors(network))
        if bundle is not None:
            known = [sha256 for sha256 in (began, bundle.backbone_sha256 if older else None) if sha256]
            _check_same_weights(folder, backbone, found, known)
        began = began or found
    if bundle is not None and (older or unchanged):
        network = bundled_backbone(backbone, bundle.tensors, image_size)
        if older and task in bundle.packs and _changes_weights(bundle.packs[task]):
            _log.warning("What task '%s' alone changed of the backbone stays so: it begins with these weights.", task)
    return Start(network, older, began, free_share(maskable_layers(network), older))


def _began_from(bundle: Bundle) -> str | None:
    """The hash of the weights that a bundle's first task began from, if a task says it or none changed them."""
    for pack in bundle.packs.values():
        if isinstance(said := pack.facts.get(PRETRAINED), str):
            return said
    return None if any(map(_changes_weights, bundle.packs.values())) else bundle.backbone_sha256


def _changes_weights(pack: TaskPack) -> bool:
    return pack.method in METHODS and METHODS[pack.method].changes_weights


def _check_same_weights(folder: Path, backbone: str, found: str, known: Collection[str]) -> None:
    """Checks that weights are those of a bundle, now or as its first task found them; all are where none is known."""
    if known and found not in known:
        raise UserError(
            f"The weights of {backbone} have SHA-256 {found}, and those of the bundle {folder} {' or '.join(known)}. "
            "Give --weights with the file that its tasks were learned from, or another bundle."
        )
