"""Backbones: how to build one by name, where its weights come from, and which of its tensors belong to a task.

EfficientNet-Lite0 comes with its ImageNet weights in a pip package. Every classification network of torchvision works
as well, by torchvision's own name (`resnet50`, `vgg16_bn`, `densenet121`, `mobilenet_v2`, …), and those of timm do
where it is installed (`timm:NAME`).

`build_backbone` is the one way in which a network is built, for learning, compiling and verifying; weights come into it
afterwards, wherever they are from. What torchvision builds in or not by the weights that it is given (auxiliary heads,
GoogLeNet's `transform_input`) is never built in: heads that only training needs are left out, and a transformation of
the input belongs to the preprocessing.
"""

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ksm_hw.errors import UserError
from ksm_hw.masks.mask_names import layer_of
from ksm_hw.masks.preprocessing import Interpolation, Preprocessing
from ksm_hw.models.timm_networks import PREFIX, timm_input_size, timm_network, timm_preprocessing, timm_weights
from ksm_hw.models.torchvision_import import import_torchvision
from ksm_hw.models.weights import fitted_weights
from ksm_hw.state_dicts import (
    EFFICIENTNET_LITE0,
    Tensors,
    check_same_tensors,
    packaged_weights,
    read_state_dict,
    shared_tensors,
)

# Networks whose published weights take (x - 0.5) / 0.5. torchvision normalises for them as for all its networks, and
# turns that into theirs inside the network (`transform_input`), where it built the network with these weights.
_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
# Heads that only training needs, of networks whose constructor builds them in by default.
_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def build_backbone(name: str, classes: int = 1000) -> nn.Module:
    """Builds a network by name, with random weights and a head of `classes` outputs; input float32 [N, 3, H, W].

    Raises:
        UserError: there is no such network.
    """
    if name.startswith(PREFIX):
        model = timm_network(name.removeprefix(PREFIX))
    elif name == EFFICIENTNET_LITE0:
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
                + f"Known are {EFFICIENTNET_LITE0}, the classification networks of torchvision, such as resnet50, and "
                f"{PREFIX}NAME, those of timm."
            )
        options = {"aux_logits": False, "init_weights": False} if name in _AUXILIARY_HEADS else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    replace_head(model, classes)
    return model


def build_shapes(name: str, classes: int = 1000) -> nn.Module:
    """The network of `build_backbone` without memory for its weights, to look at their shapes; raises as that."""
    with _WithoutWeights():
        return build_backbone(name, classes)


class _WithoutWeights(TorchFunctionMode):
    """Takes layers' weights to the meta device: what is allocated by `torch.empty`, as all large ones are.

    `torch.device("meta")` takes everything there, also tensors by whose values a constructor finds its widths (RegNet).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def widen(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Gives layers the widths of weights that grew, in place, with random weights; returns the network.

    Args:
        model: as `build_backbone` gives it. Its head takes the features that the wider network gives.
        shapes: of the network's tensors by name; those that are absent stay as they are.

    Raises:
        UserError: a layer cannot have the shape, or the layers do not fit each other.
    """
    head, grown = head_path(model), False
    for path, module in list(model.named_modules()):
        shape = shapes.get(f"{path}.weight")
        if path == head or shape is None or tuple(module.weight.shape) == tuple(shape):
            continue
        if not _widen_layer(module, shape):
            raise UserError(
                f"'{path}' of {type(model).__name__} cannot have a weight of shape {list(shape)}. The weights belong "
                "to another architecture."
            )
        grown = True
    if grown:
        outputs, _, *window = model.state_dict()[f"{head}.weight"].shape
        _widen_layer(model.get_submodule(head), (outputs, _features_of_head(model, head), *window))
    return model


def _widen_layer(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Gives a layer a weight of another shape, in place, with random values; False where it cannot have that.

    The layer itself, not a new one: a network's own kinds of layers (convolutions that pad as TensorFlow does) know
    more than the arguments of PyTorch's.
    """
    if isinstance(module, nn.Conv2d) and len(shape) == 4 and tuple(module.kernel_size) == tuple(shape[2:]):
        depthwise = module.groups > 1
        if depthwise and not (shape[1] == 1 and module.groups == module.in_channels == module.out_channels):
            return False
        module.out_channels, module.in_channels = shape[0], shape[0] if depthwise else shape[1]
        module.groups = shape[0] if depthwise else 1
    elif isinstance(module, nn.Linear) and len(shape) == 2:
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.BatchNorm2d) and len(shape) == 1:
        module.num_features = shape[0]
    elif isinstance(module, nn.PReLU) and len(shape) == 1 and module.num_parameters > 1:
        module.num_parameters = shape[0]
    else:
        return False
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim:
            wide = tensor.new_empty(shape if name == "weight" else shape[:1])
            setattr(module, name, nn.Parameter(wide) if isinstance(tensor, nn.Parameter) else wide)
    module.reset_parameters()
    return True


def _features_of_head(model: nn.Module, head: str) -> int:
    """How many channels reach a network's head.

    Raises:
        UserError: the layers in front of it do not fit each other.
    """
    found: list[int] = []

    def look(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].shape[1])

    handle = model.get_submodule(head).register_forward_pre_hook(look)
    try:
        _run_without_numbers(model)
    except RuntimeError as error:
        # The head itself is still as narrow as it was.
        if not found:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"The weights of {type(model).__name__} do not fit each other: {reason}. They belong to another "
                "architecture, or are damaged."
            ) from error
    finally:
        handle.remove()
    return found[0]


def _run_without_numbers(model: nn.Module, image_size: int = 224) -> None:
    """Runs a network on images that have shapes only."""
    state = {path: tensor.to("meta") for path, tensor in model.state_dict().items()}
    with torch.no_grad():
        torch.func.functional_call(model.eval(), state, torch.zeros(2, 3, image_size, image_size, device="meta"))


def check_can_grow(model: nn.Module) -> None:
    """Checks that in a wider network the first channels of each layer compute what the narrower network did.

    Raises:
        UserError: it puts channels behind each other, or mixes all of a layer's.
    """
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.PReLU)
    modules = [module for module in model.modules() if list(module.parameters(recurse=False))]
    mixing = any(not isinstance(module, kinds) for module in modules)
    grouped = any(isinstance(module, nn.Conv2d) and module.groups not in (1, module.in_channels) for module in modules)
    joined = _Joined()
    with joined:
        _run_without_numbers(model)
    if mixing or grouped or joined.found:
        raise UserError(
            f"{type(model).__name__} cannot grow: it puts the channels of layers behind each other, or mixes all or "
            "groups of a layer's, so that the first channels of a wider network are not those of the narrower one."
        )


class _Joined(TorchFunctionMode):
    """Notes whether tensors are put behind each other."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in (torch.cat, torch.concat, torch.concatenate)
        return func(*args, **(kwargs or {}))


def head_path(model: nn.Module) -> str:
    """Module path of the classifier head: the last linear layer, or the last convolution where there is none.

    Raises:
        UserError: the network has neither.
    """
    for kind in (nn.Linear, nn.Conv2d):
        if found := [path for path, module in model.named_modules() if isinstance(module, kind)]:
            return found[-1]
    raise UserError(
        f"{type(model).__name__} has no linear layer and no convolution, one of which ksm-hw needs as a task's head."
    )


def replace_head(model: nn.Module, classes: int) -> nn.Linear | nn.Conv2d:
    """Gives the network a fresh head of `classes` outputs, in place, and returns it: of the kind that it had."""
    path = head_path(model)
    old = model.get_submodule(path)
    assert isinstance(old, (nn.Linear, nn.Conv2d))
    if isinstance(old, nn.Linear):
        head: nn.Linear | nn.Conv2d = nn.Linear(old.in_features, classes)
    else:
        head = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
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


def layer_norm_names(model: nn.Module) -> list[str]:
    """Names of the weights and biases of LayerNorms, of those that have them."""
    return [
        f"{path}.{tensor}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for tensor, _ in module.named_parameters(recurse=False)
    ]


def maskable_layers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and weight shape of each layer that a mask may cover (`mask_names`): convolutions, linear layers but the
    head, and what attention computes queries, keys and values by."""
    head = head_path(model)
    return {
        layer_of(f"{path}.{name}"): tuple(getattr(module, name).shape)
        for path, module in model.named_modules()
        for name in _maskable_weights(module)
        if path != head
    }


def _maskable_weights(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return ("weight",)
    # Where keys or values are of another width than queries PyTorch has no such tensor.
    of_attention = isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    return ("in_proj_weight",) if of_attention else ()


@torch.no_grad()
def _check_image_size(model: nn.Module, name: str, image_size: int) -> None:
    """Checks that a network takes images of a size in pixels, and that its head's outputs are its own: computes shapes.

    Raises:
        UserError: it does not.
    """
    state = {path: tensor.to("meta") for path, tensor in model.state_dict().items()}
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    training = model.training
    try:
        logits = torch.func.functional_call(model.eval(), state, images)
    except Exception as error:  # Each network has its own way to fail, down to assertions.
        usual = _published_size(name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} does not take images of {image_size} pixels ({reason.rstrip('.!')}). Give another --image-size; "
            f"its published weights take {usual}."
        ) from error
    finally:
        model.train(training)
    classes = len(model.get_submodule(head_path(model)).weight)  # type: ignore[arg-type]
    if tuple(logits.shape) != (2, classes):
        raise UserError(f"{name} does not end in its head: its last layer gives {classes} classes, it {logits.shape}.")


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


def pretrained_backbone(name: str, weights: Path | None = None, image_size: int | None = None) -> nn.Module:
    """A network with pretrained weights.

    Args:
        name: a name that `build_backbone` knows.
        weights: a state dict (`torch.save` or safetensors). Without it EfficientNet-Lite0 takes the weights of its
            pip package, and a network of torchvision or timm those that these download.
        image_size: height and width of its input in pixels, if known: checked before weights are looked for.

    Raises:
        UserError: no network has that name or it does not take images of that size; the weights are missing, cannot be
            read safely, or belong to another architecture.
    """
    model = build_backbone(name)
    if image_size is not None:
        _check_image_size(model, name, image_size)
    file = weights or packaged_weights(name)
    where, state = _downloaded_weights(name) if file is None else (str(file), read_state_dict(file))
    head = head_path(model)
    level = logging.INFO if weights is None else logging.WARNING
    expected = {path: tensor for path, tensor in model.state_dict().items() if not path.startswith(f"{head}.")}
    fitted = fitted_weights(state, expected, (head, *_AUXILIARY_HEADS.get(name, ())), where, level)
    try:
        load_backbone_tensors(model, shared_tensors(fitted, head))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return model


def bundled_backbone(name: str, tensors: Tensors, image_size: int) -> nn.Module:
    """A network with the weights of a bundle, in whose widths it is.

    Raises:
        UserError: no network has that name, it does not take images of that size, or the weights are another's.
    """
    model = build_backbone(name)
    _check_image_size(model, name, image_size)
    widen(model, {path: array.shape for path, array in tensors.items()})
    load_backbone_tensors(model, tensors)
    return model


def _published_size(name: str) -> int:
    """Pixels of the side of the images that the published weights take."""
    if name.startswith(PREFIX):
        return timm_input_size(name.removeprefix(PREFIX))
    return 224 if name == EFFICIENTNET_LITE0 else int(_published(name).transforms().crop_size[0])


def _published(name: str) -> Any:
    """What torchvision knows of its own weights of a network."""
    return import_torchvision().models.get_model_weights(name).DEFAULT


def _downloaded_weights(name: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Where torchvision's own weights of a network, or timm's, come from, and what they are."""
    if name.startswith(PREFIX):
        return timm_weights(name.removeprefix(PREFIX))
    weights = _published(name)
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # No network, or a damaged file in the cache, of which torch raises many types.
        raise UserError(
            f"The pretrained weights of {name} could not be downloaded, or are damaged ({error}). Give a state dict "
            "of your own: --weights."
        ) from error
    return weights.url, state


def default_preprocessing(backbone: str, image_size: int) -> Preprocessing:
    """The preprocessing that a backbone's published weights were trained with, at the given input size in pixels."""
    if backbone.startswith(PREFIX):
        return timm_preprocessing(backbone.removeprefix(PREFIX), image_size)
    if backbone == EFFICIENTNET_LITE0:
        # As its TensorFlow original: (x - 127) / 128 on bytes.
        return Preprocessing(image_size, image_size, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
    wanted = _published(backbone).transforms()
    interpolation: Interpolation = "bicubic" if wanted.interpolation.value == "bicubic" else "bilinear"
    mean, std = tuple(wanted.mean), tuple(wanted.std)
    if backbone in _TRANSFORMS_INPUT:
        mean, std = (0.5,) * 3, (0.5,) * 3
    return Preprocessing(image_size, image_size, interpolation, mean, std)
