"""Checkpoints as the published scripts of KSM, Piggyback, PackNet and CPG write them, and what their tasks compute.

Written after `FORMATS.md` alone: nothing here knows ksm-hw. Each function gives the content of a file, and for each
task a network that PyTorch evaluates by the method's own rule, on weights that are cut, negated and zeroed here.
"""

import argparse
import collections
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from settled_networks import settle
from torch import nn

CLASSES = {"imagenet": 11, "cubs": 7, "flowers": 5}
SIZE = 64  # Of the images over which BatchNorms settle, in pixels.


class View(nn.Module):
    """As the scripts' own, before PyTorch had Flatten.

    It pools to the 7 × 7 places of images of 224 pixels as well, so that a VGG takes others; those it leaves as they
    are.
    """

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(data, 7).flatten(1)


class Model(nn.Module):
    """`model` of the scripts: `shared`, and a classifier for each data set."""

    def __init__(self, network: nn.Module, family: str) -> None:
        super().__init__()
        self.family = family
        self.datasets: list[str] = []
        self.classifiers = nn.ModuleList()
        if family == "resnet":
            self.shared: nn.Module = nn.Sequential()
            for name, module in network.named_children():
                if name != "fc":
                    self.shared.add_module(name, module)
        elif family == "vgg":
            fc6, relu6, drop6, fc7, relu7, drop7, _ = network.classifier
            self.shared = nn.Sequential(*network.features, View(), fc6, relu6, drop6, fc7, relu7, drop7)
        else:
            self.shared = network.features

    def add(self, dataset: str, features: int, classes: int) -> None:
        self.datasets.append(dataset)
        self.classifiers.append(nn.Linear(features, classes))

    def forward(self, images: torch.Tensor, number: int) -> torch.Tensor:
        found = self.shared(images)
        if self.family == "densenet":
            found = F.adaptive_avg_pool2d(F.relu(found), 1)
        return self.classifiers[number](found.flatten(1))


@dataclass
class Published:
    """A checkpoint.

    Attributes:
        content: to save.
        backbone: state dict that the user has beside it, by torchvision's names.
        logits: of each task, from images.
    """

    content: dict[str, Any]
    backbone: dict[str, torch.Tensor]
    logits: dict[str, Callable[[torch.Tensor], torch.Tensor]]


Made = Callable[..., Published]


def evaluated(model: Model, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    model = copy.deepcopy(model).eval()

    @torch.no_grad()
    def logits(images: torch.Tensor) -> torch.Tensor:
        return model(images, number)

    return logits


def masked(model: Model) -> dict[int, nn.Module]:
    """The layers that masks cover, by their numbers in `model.shared.modules()`."""
    return {n: m for n, m in enumerate(model.shared.modules()) if isinstance(m, (nn.Conv2d, nn.Linear))}


def new_model(network: nn.Module, family: str, datasets: tuple[str, ...]) -> Model:
    """With random weights and biases, BatchNorms that have seen nothing, and classifiers."""
    torch.manual_seed(1)
    network = copy.deepcopy(network)
    initialise(network)
    model = Model(network, family)
    features = [module for module in network.modules() if isinstance(module, nn.Linear)][-1].in_features
    for dataset in datasets:
        model.add(dataset, features, CLASSES[dataset])
    return model


def settle_for_all(model: Model) -> None:
    """The BatchNorms of tasks that share them, and use about half of the weights each."""
    halved = copy.deepcopy(model)
    for module in masked(halved).values():
        module.weight.data *= torch.rand(module.weight.shape) < 0.5
    settle(halved, SIZE, 0)
    statistics = {name: tensor for name, tensor in halved.shared.state_dict().items() if "running_" in name}
    model.shared.load_state_dict(statistics, strict=False)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Random weights, by which a signal neither dies out nor grows where half of them are 0; biases around 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.normal_(0, 2 / math.sqrt(module.weight[0].numel()))  # Kaiming's, of half the inputs.
            if module.bias is not None:
                module.bias.uniform_(-0.1, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.8, 1.2)
            module.bias.uniform_(-0.2, 0.2)


def random_owners(shape: torch.Size) -> torch.Tensor:
    """Of each weight the task that learned it: the first half of them, two others and none a sixth each; uint8."""
    drawn = torch.randint(6, shape, dtype=torch.uint8)
    return (drawn > 0).byte() + (drawn > 3) + (drawn > 4)


def backbone_of(network: nn.Module, model: Model, family: str) -> dict[str, torch.Tensor]:
    """The state dict, by torchvision's names, of a network that has the model's shared modules."""
    like = copy.deepcopy(network)
    own = Model(like, family)  # Its shared modules are those of `like`.
    own.shared.load_state_dict(model.shared.state_dict())
    return {name: tensor.clone() for name, tensor in like.state_dict().items()}


def ksm(network: nn.Module, family: str, granularity: str = "kernel") -> Published:
    model = new_model(network, family, ("imagenet", "cubs"))
    backbone = backbone_of(network, model, family)
    state: dict[str, torch.Tensor] = collections.OrderedDict()
    for path, module in model.shared.named_modules():
        if isinstance(module, nn.Conv2d):
            outputs, inputs, *_ = module.weight.shape
            shapes = {"kernel": (outputs, inputs, 1, 1), "channel": (outputs, 1, 1, 1), "element": module.weight.shape}
            mask = 5e-3 + 0.01 * torch.randn(shapes[granularity])
            state[f"shared.{path}.mask_real"] = mask
            real = mask.numpy()
            binary = (real - np.float32(5e-3) >= 0).astype(np.float32)
            a = real * (1 - binary)
            a = np.where(a != 0, (a - a.min()) / (a.max() - a.min() or 1), 0)
            with torch.no_grad():
                module.weight *= torch.from_numpy((binary + 0.5 * a).astype(np.float32))
        elif isinstance(module, nn.BatchNorm2d):  # The task's own.
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    settle(model, SIZE, 1)
    for path, module in model.shared.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, tensor in module.state_dict().items():
                state[f"shared.{path}.{name}"] = tensor.clone()
    for name, tensor in model.classifiers.state_dict().items():
        state[f"classifiers.{name}"] = tensor.clone()
    args = argparse.Namespace(dataset="cubs", lr=1e-3, mode="finetune")
    content = {"args": args, "epoch": 30, "accuracy": 81.2, "errors": [18.8], "model": state}
    return Published(content, backbone, {"cubs": evaluated(model, 1)})


def piggyback(network: nn.Module, family: str) -> Published:
    """Packed masks of two data sets, the second with ternary ones."""
    model = new_model(network, family, ("cubs", "flowers"))
    settle_for_all(model)
    masks: dict[str, dict[int, torch.Tensor]] = {}
    logits = {}
    for number, dataset in enumerate(model.datasets):
        task = copy.deepcopy(model)
        masks[dataset] = {}
        for index, module in masked(task).items():
            real = 5e-3 + 0.01 * torch.randn(module.weight.shape)
            kept = (real > 5e-3).float()
            if dataset == "flowers":
                kept -= (real < 0).float()
            masks[dataset][index] = torch.where(kept < 0, 255, kept).to(torch.uint8)
            with torch.no_grad():
                module.weight *= kept
        logits[dataset] = evaluated(task, number)
    heads = {dataset: model.classifiers[number] for number, dataset in enumerate(model.datasets)}
    content = {"dataset2masks": masks, "dataset2classifiers": heads}
    return Published(content, backbone_of(network, model, family), logits)


class ElementWiseConv2d(nn.Conv2d):
    """Piggyback's layer: frozen weights, and a real-valued mask."""


class Ternarizer(nn.Module):
    """Piggyback's threshold for ternary masks."""


def piggyback_training(network: nn.Module, family: str, ternary: bool) -> Published:
    """The whole model object of one data set, as training saves it, in DataParallel."""
    model = new_model(network, family, ("cubs",))
    settle_for_all(model)
    backbone = backbone_of(network, model, family)
    task = copy.deepcopy(model)
    for saved, own in zip(masked(model).values(), masked(task).values(), strict=True):
        saved.mask_real = nn.Parameter(5e-3 + 0.01 * torch.randn(saved.weight.shape))
        if ternary:
            saved.threshold_fn = Ternarizer()
        kept = (saved.mask_real.detach() > 5e-3).float() - (saved.mask_real.detach() < 0).float() * ternary
        with torch.no_grad():
            own.weight *= kept
    args = argparse.Namespace(dataset="cubs")
    content = {"args": args, "epoch": 3, "accuracy": 80.0, "errors": [], "model": nn.DataParallel(model)}
    return Published(content, backbone, {"cubs": evaluated(task, 0)})


def packnet(network: nn.Module, family: str, biases: bool = False, parallel: bool = False) -> Published:
    model = new_model(network, family, ("imagenet", "cubs", "flowers"))
    settle_for_all(model)
    owners = {n: random_owners(m.weight.shape) for n, m in masked(model).items()}
    indices = {dataset: number + 1 for number, dataset in enumerate(model.datasets)}
    own: dict[str, dict[int, torch.Tensor]] = {}
    logits = {}
    for number, dataset in enumerate(model.datasets):
        task = copy.deepcopy(model)
        for index, module in masked(task).items():
            with torch.no_grad():
                module.weight[(owners[index] == 0) | (owners[index] > indices[dataset])] = 0
                if biases and module.bias is not None:
                    bias = module.bias + 0.1 * number
                    own.setdefault(dataset, {})[index] = bias.clone()
                    module.bias.copy_(bias)
        logits[dataset] = evaluated(task, number)
    saved = nn.DataParallel(model) if parallel else model
    content = {"model": saved, "previous_masks": owners, "dataset2idx": indices, "epoch": 2}
    if biases:
        content["dataset2biases"] = own
    return Published(content, backbone_of(network, model, family), logits)


def scaled(network: nn.Module, factor: float) -> nn.Module:
    """The network with so many times the channels in every layer."""
    network = copy.deepcopy(network)
    last = 3
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            inputs = 3 if module.in_channels == 3 else int(module.in_channels * factor)
            last = module.out_channels
            made: nn.Module = nn.Conv2d(
                inputs,
                int(module.out_channels * factor),
                module.kernel_size,
                module.stride,
                module.padding,
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.BatchNorm2d):
            made = nn.BatchNorm2d(int(module.num_features * factor))
        elif isinstance(module, nn.PReLU):
            made = nn.PReLU(int(module.num_parameters * factor))
        elif isinstance(module, nn.Linear):
            cells = module.in_features // last if module.in_features % last == 0 else 1
            outputs = module.out_features if module is linear else int(module.out_features * factor)
            made = nn.Linear(int(module.in_features // cells * factor) * cells, outputs)
        else:
            continue
        network.set_submodule(path, made)
    return network


def cpg(network: nn.Module, family: str, widths: tuple[float, ...] = (1, 1, 1.5)) -> Published:
    """Three data sets; the network grows before those whose width is more, and the first has no piggymasks."""
    torch.manual_seed(2)
    datasets = ("imagenet", "cubs", "flowers")
    wide = scaled(network, max(widths))
    initialise(wide)
    state = {f"module.{name}": tensor for name, tensor in wide.state_dict().items()}
    state = {
        name: tensor for name, tensor in state.items() if not name.startswith(("module.fc.", "module.classifier.6."))
    }
    layers = {p: m for p, m in wide.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    layers.pop(list(layers)[-1])
    narrow = scaled(network, min(widths))
    owners = {path: random_owners(module.weight.shape) for path, module in layers.items()}
    first_wide = next(n + 1 for n, width in enumerate(widths) if width == max(widths))
    for path, mask in owners.items():  # What was not there when narrow tasks were learned is of later ones.
        grown = torch.ones_like(mask, dtype=torch.bool)
        grown[tuple(map(slice, narrow.get_submodule(path).weight.shape))] = False
        mask[grown & (mask < first_wide)] = 0
    infos: dict[str, dict[str, Any]] = {}
    logits = {}
    for number, (dataset, width) in enumerate(zip(datasets, widths, strict=True)):
        task = scaled(network, width)
        model = new_model(task, family, datasets)
        # The modules of `model` are copies of the task's, whose paths the file has.
        paths = dict(zip([id(m) for m in Model(task, family).shared.modules()], model.shared.modules(), strict=True))
        own = {path: paths[id(module)] for path, module in task.named_modules() if id(module) in paths}
        info: dict[str, Any] = collections.defaultdict(dict)
        info["network_width_multiplier"] = width
        for path, module in own.items():
            name = f"module.{path}"
            if path in layers:
                part = tuple(map(slice, module.weight.shape))
                kept = (owners[path][part] >= 1) & (owners[path][part] <= number + 1)
                if number:
                    real = 5e-3 + 0.01 * torch.randn(module.weight.shape)
                    info["piggymask"][name] = real
                    kept &= real > 5e-3
                with torch.no_grad():
                    module.weight.copy_(layers[path].weight[part] * kept)
                if module.bias is not None:
                    info["bias"][name] = module.bias.detach().clone()
            elif isinstance(module, nn.PReLU):
                info["prelu_layer_weight"][name] = nn.init.uniform_(module.weight, 0.1, 0.5).detach().clone()
        settle(model, SIZE, number)
        for path, module in own.items():
            if isinstance(module, nn.BatchNorm2d):
                for leaf in ("weight", "bias", "running_mean", "running_var"):
                    info[f"bn_layer_{leaf}"][f"module.{path}"] = getattr(module, leaf).detach().clone()
        infos[dataset] = dict(info)
        logits[dataset] = evaluated(model, number)
        for leaf in ("weight", "bias"):
            state[f"module.classifiers.{number}.{leaf}"] = getattr(model.classifiers[number], leaf).detach().clone()
    content = {
        "model_state_dict": state,
        "dataset_history": list(datasets),
        "dataset2num_classes": {dataset: CLASSES[dataset] for dataset in datasets},
        "masks": {f"module.{path}": mask for path, mask in owners.items()},
        "shared_layer_info": infos,
    }
    return Published(content, {}, logits)
