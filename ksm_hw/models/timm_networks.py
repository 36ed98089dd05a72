"""The networks of timm (`timm:NAME`) where it is installed: how they are built, prepared for, and get weights."""

import difflib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.masks.preprocessing import Interpolation, Preprocessing
from ksm_hw.models.torchvision_import import import_torchvision

PREFIX = "timm:"


def timm_network(name: str) -> nn.Module:
    """A network with random weights; `name` is timm's own, behind which a dot and the tag of weights may stand.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    return _created(name, pretrained=False)


def timm_weights(name: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Where timm's weights of a network come from, and what they are; timm downloads them, and keeps them.

    Raises:
        UserError: as `timm_network`; there are none, they cannot be downloaded, or they are damaged.
    """
    configuration = _configuration(name)
    where = f"timm's weights of {name} ({configuration.get('hf_hub_id') or configuration.get('url') or 'none'})"
    try:
        return where, _created(name, pretrained=True).state_dict()
    except UserError:
        raise
    except Exception as error:  # No network, or a damaged file in the cache, of which each library raises its own.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{where} could not be downloaded, or are damaged ({reason}). Give a state dict of your own: --weights."
        ) from error


def timm_input_size(name: str) -> int:
    """Height and width in pixels of the images that the published weights take; raises as `timm_network`."""
    return int(_configuration(name)["input_size"][-1])


def timm_preprocessing(name: str, image_size: int) -> Preprocessing:
    """What the published weights were trained with, at the given input size in pixels; raises as `timm_network`."""
    known = _configuration(name)
    interpolation: Interpolation = "bicubic" if known["interpolation"] == "bicubic" else "bilinear"
    return Preprocessing(image_size, image_size, interpolation, tuple(known["mean"]), tuple(known["std"]))


def _configuration(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        found: dict[str, Any] = timm_network(name).pretrained_cfg  # type: ignore[assignment]
    return found


def _created(name: str, pretrained: bool) -> nn.Module:
    timm = _import_timm(name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"timm {timm.__version__} has no network named '{name}'."
            + (f" Did you mean {' or '.join(near)}?" if near else " timm.list_models() has their names.")
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained)
    except RuntimeError as error:
        if "pretrained tag" not in str(error):
            raise
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise UserError(f"timm has no weights '{name}'. Of this network there are: {tags}.") from error
    return network


def _import_timm(name: str) -> ModuleType:
    import_torchvision()  # Which timm imports too, and cannot by itself beside a CPU torch.
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"The backbone {PREFIX}{name} is one of timm's, which is not installed. Install it: pip install "
            "'ksm-hw[timm]'."
        ) from error
    module: ModuleType = timm
    return module
