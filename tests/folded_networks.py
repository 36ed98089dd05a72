"""Small networks whose BatchNorms stand where they do in real ones, with random masks."""

import copy

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from ksm_hw.compiler.lower import lower_backbone
from ksm_hw.masks.mask_format import Granularity, ScaleBits, group_size, mask_shape
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.soft_mask import PackedMask, pack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import maskable_layers
from tvm_passes.relax.fold_task_mask import MaskLayout

SIDE, CLASSES = 10, 3


MASK_PARAMETERS = [f"mask/layer/{part}" for part in ("bits", "scale", "row_start", "scale_range")]


class PostActivation(nn.Module):
    """Convolution then BatchNorm, as in ResNet; a depthwise one; one with a bias, as in VGG; a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.depthwise_norm = nn.Conv2d(12, 12, 3, stride=2, groups=12, bias=False), nn.BatchNorm2d(12)
        self.biased, self.biased_norm = nn.Conv2d(12, 20, 1), nn.BatchNorm2d(20, eps=1e-3)
        self.hidden, self.head = nn.Linear(20, 9), nn.Linear(9, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first_norm(self.first(images)).relu()
        x = self.depthwise_norm(self.depthwise(x)).relu()
        x = self.biased_norm(self.biased(x)).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


class PreActivation(nn.Module):
    """BatchNorm before the convolution, over a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.second, self.last_norm = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        x = torch.cat([x, self.second(self.norm(x).relu())], 1)
        return self.head(self.last_norm(x).relu().mean((2, 3)))


def network_with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its BatchNorms far from the identity; its values are the same each time."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        if isinstance(module, nn.MultiheadAttention):
            nn.init.uniform_(module.in_proj_weight, -1, 1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.3, 2)
    return network.eval()


def lower(network: nn.Module) -> tvm.IRModule:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ksm_hw.compiler.lower.build_backbone", lambda name, classes: copy.deepcopy(network))
        return lower_backbone("small", CLASSES, 1, SIDE)


def random_masks(network: nn.Module, granularity: Granularity, scale_bits: ScaleBits = 32) -> dict[str, PackedMask]:
    generator = np.random.default_rng(5)
    masks = {}
    for layer, weight in maskable_layers(network).items():
        shape = mask_shape(weight, granularity)
        values = generator.uniform(0, 0.5, shape).astype(np.float32)
        masks[layer] = pack_mask(np.where(generator.random(shape) < 0.6, np.float32(1), values), scale_bits)
    return masks


def layouts_of(masks: dict[str, PackedMask], granularity: Granularity) -> dict[str, MaskLayout]:
    size = group_size(granularity)
    return {layer: MaskLayout(tuple(mask.shape), size, mask.coded) for layer, mask in masks.items()}


def pack_of(network: nn.Module, masks: dict[str, PackedMask], granularity: Granularity = "kernel") -> TaskPack:
    return TaskPack(
        "task", ("a", "b", "c"), "random", granularity, "small", "", Preprocessing(SIDE, SIDE, "bilinear", (0,), (1,)),
        masks, {}, network.head.weight.detach().numpy(), network.head.bias.detach().numpy(),
    )  # fmt: skip


def kernels_called(function: relax.Function) -> list[str]:
    """The name of the kernel of every call in a function."""
    found: list[str] = []

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            found.append(expression.args[0].name_hint)

    relax.analysis.post_order_visit(function, visit)
    return found
