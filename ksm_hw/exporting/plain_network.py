"""A task as a plain network: masks multiplied into the weights, BatchNorms folded into the convolutions before them."""

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module

_log = logging.getLogger(__name__)


def plain_network(bundle: Bundle, pack: TaskPack) -> nn.Module:
    """The network of a task in evaluation mode, with as few layers as compute its logits.

    Input float32 [N, 3, H, W], output the logits float32 [N, classes]. A BatchNorm that follows a convolution, and
    nothing else does, becomes an empty `nn.Sequential`, and the convolution gets its scale and a bias; others stay.
    """
    network = task_module(bundle, pack)
    folded = 0
    for convolution, batch_norm in _foldable(network):
        before, behind = network.get_submodule(convolution), network.get_submodule(batch_norm)
        assert isinstance(before, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(before, behind)
        network.set_submodule(convolution, fused)
        # What timm's kinds of BatchNorm do behind the norm, activations, are their children; PyTorch's have none.
        network.set_submodule(batch_norm, nn.Sequential(*behind.children()))
        folded += 1
    left = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    _log.info("%s BatchNorms are folded into convolutions, %s follow none and stay", folded, left)
    return network.requires_grad_(False).eval()


class _LayersTracer(torch.fx.Tracer):
    """Takes convolutions of packages, which pad their input themselves, as single layers as it does PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _foldable(network: nn.Module) -> list[tuple[str, str]]:
    """Paths of the convolutions whose result one BatchNorm alone takes, and of that."""
    modules = dict(network.named_modules())
    try:
        graph = _LayersTracer().trace(network)
    except Exception as error:  # A network whose way depends on its input fails in ways of its own.
        _log.info("no BatchNorm is folded: the network cannot be traced (%s)", error)
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [node.target for node in calls]
    found = []
    for node in calls:
        before: Any = node.args[0] if node.args else None
        if (
            isinstance(modules[node.target], nn.BatchNorm2d)
            and before in calls
            and isinstance(modules[before.target], nn.Conv2d)
            and len(before.users) == 1
            and called.count(node.target) == called.count(before.target) == 1
        ):
            found.append((before.target, node.target))
    return found
