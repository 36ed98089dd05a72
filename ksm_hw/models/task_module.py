"""The PyTorch module of a task: the reference that every compiled model is checked against."""

import torch
from torch import nn

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import shapes_of
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.soft_mask import broadcast_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import build_backbone, head_path, load_backbone_tensors, widen


def task_module(bundle: Bundle, pack: TaskPack) -> nn.Module:
    """Builds the network of a task in evaluation mode: W · soft_mask in each masked layer, its own
    BatchNorms, LayerNorms and biases, its head.

    Input float32 [N, 3, H, W], output the logits float32 [N, classes].
    """
    model = widen(build_backbone(bundle.backbone, len(pack.classes)), shapes_of(bundle.tensors))
    tensors = dict(bundle.tensors) | pack.own_tensors
    for layer, packed in pack.masks.items():
        weight = bundle.tensors[weight_of(layer)]
        tensors[weight_of(layer)] = weight * broadcast_mask(unpack_mask(packed), weight.shape, pack.granularity)
    load_backbone_tensors(model, tensors)
    head = model.get_submodule(head_path(model))
    head.load_state_dict(
        {"weight": torch.from_numpy(pack.head_weight.copy()), "bias": torch.from_numpy(pack.head_bias.copy())}
    )
    return model.eval()
