"""Backbones: how to build one by name, where its weights come from, and which of its tensors belong to a task.

EfficientNet-Lite0 comes with its ImageNet weights in a pip package. Every classification network of torchvision works
as well, by torchvision's own name (`resnet50`, `vgg16_bn`, `densenet121`, `mobilenet_v2`, …).
"""

import difflib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.models.torchvision_import import import_torchvision
from ksm_hw.state_dicts import (
    EFFICIENTNET_LITE0,
    Tensors,
    check_same_tensors,
    packaged_weights,
    read_state_dict,
    shared_tensors,
)


def build_backbone(name: str, classes: int = 1000) -> nn.Module:
    """Builds a network by name, with random weights and a head of `classes` outputs; input float32 [N, 3, H, W].

    Raises:
        UserError: there is no such network.
    """
    if name == EFFICIENTNET_LITE0:
        from efficientnet_lite_pytorch import EfficientNet

        # Stochastic depth is for long training from scratch; masks are learned over fixed features.
        model = EfficientNet.from_name(name, drop_connect_rate=0.0)
    else:
        torchvision = import_torchvision()
        known = [EFFICIENTNET_LITE0, *torchvision.models.list_models(module=torchvision.models)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise UserError(
                f"No backbone named '{name}'. "
                + (f"Did you mean {' or '.join(near)}? " if near else "")
                + f"Known are {EFFICIENTNET_LITE0} and the classification networks of torchvision, such as resnet50."
            )
        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    replace_head(model, classes)
    return model


def head_path(model: nn.Module) -> str:
    """Module path of the classifier head: the network's last linear layer.

    Raises:
        UserError: the network has no linear layer.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"{type(model).__name__} ends in no linear layer, which ksm-hw needs as the head of a task.")
    return linear[-1]


def replace_head(model: nn.Module, classes: int) -> nn.Linear:
    """Gives the network a fresh linear head of `classes` outputs, in place, and returns it."""
    path = head_path(model)
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    head = nn.Linear(old.in_features, classes)
    model.set_submodule(path, head)
    return head


def batch_norm_names(model: nn.Module) -> list[str]:
    """Names of the tensors that a task learns with its BatchNorms: weight, bias, running_mean, running_var of each."""
    return [
        f"{path}.{tensor}"
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for tensor in ("weight", "bias", "running_mean", "running_var")
    ]


def maskable_layers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Module path and weight shape of each layer that a mask may cover: convolutions, linear layers but the head."""
    head = head_path(model)
    return {
        path: tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and path != head
    }


def backbone_tensors(model: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors that all tasks share: the state of the network but its head, float32."""
    return shared_tensors(model.state_dict(), head_path(model))


def load_backbone_tensors(model: nn.Module, tensors: Tensors) -> None:
    """Writes the shared tensors into a network of the same architecture, in place.

    Raises:
        UserError: a tensor is missing, is too many or has another shape.
    """
    expected = backbone_tensors(model)
    check_same_tensors(
        {name: tensor.shape for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in tensors.items()},
        f"weights for {type(model).__name__}",
    )
    # The network's own state dict carries format versions that some networks (MNASNet) ask for when they load.
    state = model.state_dict()
    # A copy, because arrays read from a file are read-only and torch would share them.
    state.update({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    model.load_state_dict(state)


def pretrained_backbone(name: str, weights: Path | None = None) -> nn.Module:
    """A network with pretrained weights.

    Args:
        name: a name that `build_backbone` knows.
        weights: a state dict (`torch.save` or safetensors). Without it EfficientNet-Lite0 takes the weights of its
            pip package, and a torchvision network those that torchvision downloads.

    Raises:
        UserError: the weights are missing, cannot be read safely, or belong to another architecture.
    """
    weights = weights or packaged_weights(name)
    if weights is not None:
        return _with_state_dict(build_backbone(name), read_state_dict(weights), str(weights))
    build_backbone(name, classes=1)
    try:
        return import_torchvision().models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise UserError(
            f"The pretrained weights of {name} could not be downloaded ({error}). Give a state dict with --weights."
        ) from error


def _with_state_dict(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> nn.Module:
    head = head_path(model)
    if f"{head}.weight" in state:
        replace_head(model, len(state[f"{head}.weight"]))
    try:
        load_backbone_tensors(model, shared_tensors(state, head))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return model


def default_preprocessing(backbone: str, image_size: int) -> Preprocessing:
    """The preprocessing that a backbone was trained with, at the given input size in pixels."""
    if backbone == EFFICIENTNET_LITE0:
        # As its TensorFlow original: (x - 127) / 128 on bytes.
        return Preprocessing(image_size, image_size, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
    return Preprocessing(image_size, image_size, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
