"""From a PyTorch network to Relay: torch.jit.trace. Runs in Relay's environment."""

import warnings
from collections.abc import Mapping

import torch
import tvm
from tvm import relay

from ksm_hw.artifact.parameters import HEAD_BIAS, HEAD_WEIGHT
from ksm_hw.models.backbones import build_backbone, head_path, widen
from tvm_passes.relay.names import INPUT


def lower_backbone(
    backbone: str, classes: int, batch: int, image_size: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tvm.IRModule:
    """Lowers a network to `main(input, *parameters)`, with the names of its sibling for Relax.

    `input` is float32 [batch, 3, image_size, image_size] and the result the logits, float32 [batch, classes].
    Layers have the widths that `shapes` gives them (`shapes_of`).

    Raises:
        UserError: there is no such network.
    """
    model = widen(build_backbone(backbone, classes), shapes or {}).eval()
    head = head_path(model)
    shape = (batch, 3, image_size, image_size)
    with warnings.catch_warnings(), torch.inference_mode():
        # torch.jit is deprecated, and Relay has no importer for torch.export; a user can do nothing about it.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, torch.zeros(shape))
        module, _ = relay.frontend.from_pytorch(traced, [(INPUT, shape)], preserve_pytorch_scopes=True)
    names = {f"{head}.weight": HEAD_WEIGHT, f"{head}.bias": HEAD_BIAS}
    module = _typed(module)
    function = module["main"]
    # The importer gives parameters in the order in which it met them; only the input comes first for certain by name.
    ordered = sorted(function.params, key=lambda variable: variable.name_hint != INPUT)
    renamed = {
        variable: relay.Var(names.get(variable.name_hint, variable.name_hint), variable.checked_type)
        for variable in ordered
    }
    body = relay.bind(function.body, renamed)
    return _typed(tvm.IRModule.from_expr(relay.Function(list(renamed.values()), body)))


def _typed(module: tvm.IRModule) -> tvm.IRModule:
    """The module with the type of every expression."""
    return relay.transform.InferType()(module)
